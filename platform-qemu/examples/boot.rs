//! A smoke test of the platform: boots, checks what the platform promises, exits.
//!
//! With one of these as the last argument it breaks a rule instead, and must end with a report
//! and status 35: `panic`, `double-free`, `null`, `write-text`, `execute-data`, `overflow`.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
platform_qemu::main!(smoke::main);

#[cfg(target_os = "none")]
mod smoke {
    use alloc::{string::String, vec, vec::Vec};
    use core::hint::black_box;

    use platform_qemu::{
        files, gate,
        interrupts::{self, without},
        layout::{self, DIRECT_MAP, GATE, PAGE_SIZE, WINDOW},
        memory::{self, FrameKind},
        paging::{self, translate},
        println, time,
    };

    pub(crate) fn main() -> bool {
        println!("arguments: {:?}", files::arguments());
        // What the runner has to say comes before.
        if fails_on_purpose(files::arguments().split_whitespace().last().unwrap_or_default()) {
            println!("still here");
            return true;
        }
        for file in files::files() {
            let sum = file.bytes.iter().fold(0u32, |sum, &byte| sum.rotate_left(1) ^ u32::from(byte));
            println!("file {:?}: {} bytes, sum {sum:#x}", file.name, file.bytes.len());
        }
        for (kind, frames) in memory::summary() {
            println!("{kind:?}: {frames} frames");
        }
        frames();
        heap();
        mappings();
        gate_pages();
        ticks();
        machine::check();
        println!("ok");
        true
    }

    /// Breaks the rule that the arguments name. Returns, with true, if that went unnoticed.
    fn fails_on_purpose(rule: &str) -> bool {
        let image = layout::image();
        match rule {
            "panic" => panic!("as asked"),
            "double-free" => {
                let frame = memory::allocate_frame().expect("RAM");
                memory::free_frame(frame);
                memory::free_frame(frame);
            }
            // SAFETY: not at all. It faults.
            "null" => unsafe {
                black_box(core::ptr::without_provenance::<u64>(8)).read_volatile();
            },
            // SAFETY: not at all. It faults.
            "write-text" => unsafe { (image.text.start as *mut u64).write_volatile(0) },
            "execute-data" => {
                // SAFETY: not at all. It faults.
                let data = unsafe { core::mem::transmute::<u64, fn()>(image.data.start) };
                data();
            }
            "overflow" => {
                println!("depth {}", recurse(0));
            }
            _ => return false,
        }
        true
    }

    fn recurse(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        if black_box(true) { recurse(depth + 1) + frame[7] } else { depth }
    }

    fn frames() {
        let free = memory::free_frames();
        let frames: Vec<u64> = (0..100).map(|_| memory::allocate_frame().expect("RAM")).collect();
        assert_eq!(memory::free_frames(), free - frames.len());
        for &frame in &frames {
            assert_eq!(memory::frame_kind(frame), FrameKind::Used);
            // SAFETY: the frame is ours.
            unsafe { memory::direct(frame).write_bytes(0xa5, PAGE_SIZE as usize) };
        }
        for frame in frames {
            memory::free_frame(frame);
            assert_eq!(memory::frame_kind(frame), FrameKind::Free);
        }
        assert_eq!(memory::free_frames(), free);
        assert_eq!(memory::frame_kind(paging::root()), FrameKind::PageTable);
        assert_eq!(memory::frame_kind(layout::image_frames().start), FrameKind::Image);
        assert_eq!(memory::frame_kind(!(PAGE_SIZE - 1)), FrameKind::Device);
    }

    fn heap() {
        let mut numbers = Vec::new();
        numbers.extend(0..100_000u64);
        let big = vec![7u8; 8 << 20];
        let mut text = String::from("x");
        for _ in 0..16 {
            text = text.clone() + &text;
        }
        drop(black_box(big));
        assert_eq!(numbers.iter().sum::<u64>(), 100_000 * 99_999 / 2);
        assert_eq!(text.len(), 1 << 16);
    }

    /// Every page of the image has the permissions of its part, and nothing can be both written
    /// and executed.
    fn mappings() {
        let image = layout::image();
        println!("text {:#x?} rodata {:#x?} data {:#x?}", image.text, image.rodata, image.data);
        for (part, writable, executable) in
            [(image.text, false, true), (image.rodata, false, false), (image.data, true, false)]
        {
            for page in part.step_by(PAGE_SIZE as usize) {
                let found = translate(page);
                if layout::stack_guard().contains(&page) {
                    assert_eq!(found, None);
                    continue;
                }
                let found = found.expect("the image is mapped");
                let expected = (page - layout::IMAGE, writable, executable, false);
                assert_eq!((found.physical, found.writable, found.executable, found.user), expected, "{page:#x}");
            }
        }
        let ticks = &raw const time::TICKS as u64;
        assert!(ticks.is_multiple_of(PAGE_SIZE) && translate(ticks).is_some_and(|t| t.writable && !t.executable));

        let frames = memory::summary();
        let ram: usize = frames.iter().filter(|(kind, _)| *kind != FrameKind::Device).map(|(_, count)| count).sum();
        let (mut checked, mut phys) = (0, 0);
        while checked < ram {
            if memory::frame_kind(phys) != FrameKind::Device {
                let found = translate(DIRECT_MAP + phys).expect("RAM is mapped");
                assert_eq!((found.physical, found.writable, found.executable), (phys, true, false));
                checked += 1;
            }
            phys += PAGE_SIZE;
        }
        println!("direct map checked: {checked} frames");
        for nowhere in [0, 0x10_0000, 0x20_0000, 0x4000_0000, WINDOW.start, WINDOW.end - 1, GATE.start] {
            assert_eq!(translate(nowhere), None, "{nowhere:#x}");
        }
    }

    fn gate_pages() {
        let frames: Vec<u64> = (0..3).map(|_| memory::allocate_frame().expect("RAM")).collect();
        let base = gate::map_gate_pages(&frames, paging::Access::ReadWrite).expect("room");
        for (&frame, page) in frames.iter().zip((base..).step_by(PAGE_SIZE as usize)) {
            let found = translate(page).expect("mapped");
            assert_eq!((found.physical, found.writable, found.executable, found.user), (frame, true, false, false));
            // SAFETY: the page is ours, and mapped writable.
            unsafe { (page as *mut u64).write_volatile(frame) };
            // SAFETY: the frame is ours.
            let read = unsafe { memory::direct(frame).cast::<u64>().read_volatile() };
            assert_eq!(read, frame);
        }
    }

    fn ticks() {
        assert!(interrupts::enabled());
        without(|| assert!(!interrupts::enabled()));
        assert!(interrupts::enabled());
        let (start, counted) = (time::ticks(), time::instructions());
        while time::ticks() < start + 5 {
            core::hint::spin_loop();
        }
        println!("5 ticks: counter moved by {}", time::instructions() - counted);
        assert_eq!(interrupts::unclaimed(), 0);
        time::stop_tick();
        let stopped = time::ticks();
        for _ in 0..1_000_000 {
            core::hint::spin_loop();
        }
        assert!(time::ticks() <= stopped + 1, "the tick goes on");
        time::start_tick();
        while time::ticks() < stopped + 3 {}
    }

    #[cfg(target_arch = "x86_64")]
    mod machine {
        use core::sync::atomic::{AtomicU64, Ordering};

        use platform_qemu::{
            interrupts,
            machine::{apic, exceptions, segments},
            println,
        };
        use x86_64::registers::control::{Cr0, Cr4};

        static RAISED: AtomicU64 = AtomicU64::new(0);

        pub(super) fn check() {
            println!("cr0 {:?}\ncr4 {:?}", Cr0::read(), Cr4::read());
            assert!(segments::tss_address().is_multiple_of(128));
            let nmis = exceptions::nmi_count();
            apic::raise_nmi();
            while exceptions::nmi_count() == nmis {}
            interrupts::register(0x80, || {
                RAISED.fetch_add(1, Ordering::Relaxed);
            });
            for n in 1..=3 {
                apic::raise(0x80);
                while RAISED.load(Ordering::Relaxed) != n {}
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    mod machine {
        use core::arch::asm;
        use core::sync::atomic::{AtomicU64, Ordering};

        use platform_qemu::{
            interrupts,
            machine::interrupts::{deliver_as_fiq, raise},
            println, time,
        };

        static RAISED: AtomicU64 = AtomicU64::new(0);

        fn count_one() {
            RAISED.fetch_add(1, Ordering::Relaxed);
        }

        pub(super) fn check() {
            interrupts::register(1, count_one);
            interrupts::register(2, count_one);
            deliver_as_fiq(2, true);
            for (n, (line, fiq)) in (1..).zip([(1, false), (2, true), (1, false)]) {
                // Pending while masked, taken once unmasked.
                interrupts::without(|| {
                    raise(line, fiq);
                    assert_eq!(RAISED.load(Ordering::Relaxed), n - 1);
                });
                while RAISED.load(Ordering::Relaxed) != n {}
            }
            // Under `-icount shift=0` the numbers differ by exactly 2000.
            println!("100 rounds: {}, 1100 rounds: {}", count(100), count(1100));
        }

        /// What the counter says of a loop of two instructions. Never inlined, so that what the
        /// compiler puts around the loop is the same for every call.
        #[inline(never)]
        fn count(rounds: u64) -> u64 {
            interrupts::without(|| {
                let start = time::instructions();
                // SAFETY: counts a register down.
                unsafe { asm!("2: subs {0}, {0}, #1", "b.ne 2b", inout(reg) rounds => _, options(nomem, nostack)) };
                time::instructions() - start
            })
        }
    }
}
