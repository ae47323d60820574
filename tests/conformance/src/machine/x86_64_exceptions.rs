//! Handlers of the suite's own in front of the kernel's, which see what a kernel's handlers see.
//!
//! The gate in the kernel's exception table is changed for the time of a case, as a debugger would do it. A handler records the
//! frame that it was called with; then the kernel's own handler goes on, or, where the kernel has none, the interrupted code.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use x86_64::instructions::interrupts;
use x86_64::instructions::tables::{sgdt, sidt};
use x86_64::registers::control::{Cr0, Cr0Flags};
use x86_64::registers::segmentation::{CS, Segment};
use x86_64::structures::tss::TaskStateSegment;

pub(crate) const DEBUG: u8 = 1;
pub(crate) const NMI: u8 = 2;

/// DR6 with nothing in it.
pub(crate) const DR6_CLEAR: u64 = 0xffff_0ff0;
const DR7_KIND: u32 = 16;
const RESUME_FLAG: u64 = 1 << 16;

/// What the CPU pushes, and below it what the entry does.
#[repr(C)]
pub(crate) struct Frame {
    registers: [u64; 15],
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

/// What a handler found, the last time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// How often it was called.
    pub(crate) count: usize,
    pub(crate) cs: u64,
    pub(crate) flags: u64,
    /// Where the handler's frame is.
    pub(crate) stack: u64,
    /// [`DEBUG`] only: all bits of DR6 that were ever set, and the last DR7.
    pub(crate) dr6: u64,
    pub(crate) dr7: u64,
    /// How often breakpoint 2 was among what had hit.
    pub(crate) second: usize,
}

impl Seen {
    /// Whether the frame is one of privileged code, with the interrupt flag so.
    pub(crate) fn is_privileged(&self, interrupts: bool) -> bool {
        self.cs == u64::from(CS::get_reg().0) && (self.flags & 1 << 9 != 0) == interrupts
    }
}

/// A place for one handler.
pub(crate) struct Slot {
    /// The kernel's own, or 0 to go back to what was interrupted.
    next: AtomicU64,
    count: AtomicUsize,
    cs: AtomicU64,
    flags: AtomicU64,
    stack: AtomicU64,
    dr6: AtomicU64,
    dr7: AtomicU64,
    second: AtomicUsize,
    /// What else it does, once: a `&mut dyn FnMut()`, or null.
    action: AtomicPtr<()>,
}

impl Slot {
    const fn new() -> Self {
        Slot {
            next: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            cs: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            stack: AtomicU64::new(0),
            dr6: AtomicU64::new(0),
            dr7: AtomicU64::new(0),
            second: AtomicUsize::new(0),
            action: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// What the handler has found since it was installed.
    pub(crate) fn seen(&self) -> Seen {
        let load = |field: &AtomicU64| field.load(Ordering::Relaxed);
        Seen {
            count: self.count.load(Ordering::Relaxed),
            cs: load(&self.cs),
            flags: load(&self.flags),
            stack: load(&self.stack),
            dr6: load(&self.dr6),
            dr7: load(&self.dr7),
            second: self.second.load(Ordering::Relaxed),
        }
    }

    fn record(&self, frame: &Frame) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.cs.store(frame.cs, Ordering::Relaxed);
        self.flags.store(frame.flags, Ordering::Relaxed);
        self.stack.store(core::ptr::from_ref(frame).addr() as u64, Ordering::Relaxed);
    }
}

static DEBUGGER: Slot = Slot::new();
static FIRST: Slot = Slot::new();
static SECOND: Slot = Slot::new();

/// A debugger's handler: looks at the status and clears it, and sets the resume flag at a breakpoint before an instruction.
extern "C" fn on_debug(frame: &mut Frame) {
    let (dr6, dr7): (u64, u64);
    // SAFETY: reads the registers, and clears the status, which is this handler's.
    unsafe {
        asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags));
        asm!("mov {}, dr7", out(reg) dr7, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) DR6_CLEAR, options(nomem, nostack, preserves_flags));
    }
    DEBUGGER.record(frame);
    DEBUGGER.dr6.fetch_or(dr6 & !DR6_CLEAR, Ordering::Relaxed);
    DEBUGGER.dr7.store(dr7, Ordering::Relaxed);
    DEBUGGER.second.fetch_add((dr6 >> 2 & 1) as usize, Ordering::Relaxed);
    if (0..4).any(|n| dr6 & dr7 >> n & 1 != 0 && dr7 >> (DR7_KIND + 4 * n) & 0b11 == 0) {
        frame.flags |= RESUME_FLAG;
    }
}

fn on_interrupt(slot: &Slot, frame: &Frame) {
    slot.record(frame);
    let action = slot.action.swap(core::ptr::null_mut(), Ordering::Relaxed);
    if !action.is_null() {
        // SAFETY: only `with_inner_observer` stores something else than null, and takes it back before it is gone.
        unsafe { (*action.cast::<&mut dyn FnMut()>())() };
    }
}

extern "C" fn on_first(frame: &mut Frame) {
    on_interrupt(&FIRST, frame);
}

extern "C" fn on_second(frame: &mut Frame) {
    on_interrupt(&SECOND, frame);
}

/// An entry for `slot`: keeps all registers, calls `handler`, and goes on to the kernel's own or back.
macro_rules! entry {
    ($name:ident, $slot:ident, $handler:ident) => {
        #[unsafe(naked)]
        extern "C" fn $name() {
            naked_asm!(
                "push rax",
                "push rbx",
                "push rcx",
                "push rdx",
                "push rsi",
                "push rdi",
                "push rbp",
                "push r8",
                "push r9",
                "push r10",
                "push r11",
                "push r12",
                "push r13",
                "push r14",
                "push r15",
                "cld",
                "mov rdi, rsp",
                "call {handler}",
                "pop r15",
                "pop r14",
                "pop r13",
                "pop r12",
                "pop r11",
                "pop r10",
                "pop r9",
                "pop r8",
                "pop rbp",
                "pop rdi",
                "pop rsi",
                "pop rdx",
                "pop rcx",
                "pop rbx",
                "pop rax",
                "cmp qword ptr [rip + {slot} + {next}], 0",
                "je 2f",
                "jmp qword ptr [rip + {slot} + {next}]",
                "2: iretq",
                handler = sym $handler,
                slot = sym $slot,
                next = const core::mem::offset_of!(Slot, next),
            )
        }
    };
}
entry!(enter_debugger, DEBUGGER, on_debug);
entry!(enter_first, FIRST, on_first);
entry!(enter_second, SECOND, on_second);

/// A gate of the exception table (SDM 3, figure 7-8).
type Gate = [u64; 2];
const PRESENT: u64 = 1 << 47;
const STACK_SHIFT: u32 = 32;
const STACK_MASK: u64 = 0b111 << STACK_SHIFT;

fn gate_of(vector: u8) -> *mut Gate {
    let table: *mut Gate = core::ptr::with_exposed_provenance_mut(sidt().base.as_u64() as usize);
    table.wrapping_add(vector.into())
}

fn handler_of([low, high]: Gate) -> u64 {
    low & 0xffff | low >> 48 << 16 | high << 32
}

fn with_handler([low, high]: Gate, handler: u64) -> Gate {
    [
        low & !(0xffff | 0xffff << 48) | handler & 0xffff | (handler >> 16 & 0xffff) << 48,
        high & !0xffff_ffff | handler >> 32,
    ]
}

/// Changes the gate of a vector; the kernel may have made its table read-only.
///
/// # Safety
///
/// 1. The gate is a good one.
unsafe fn set_gate(vector: u8, gate: Gate) {
    interrupts::without_interrupts(|| {
        let before = Cr0::read();
        // SAFETY: (1), and the table's entry is there since the CPU uses it. Write protection is off for this one store.
        unsafe {
            Cr0::write(before - Cr0Flags::WRITE_PROTECT);
            gate_of(vector).write_volatile(gate);
            Cr0::write(before);
        }
    });
}

/// Runs `work` while `entry` handles `vector` on interrupt stack `stack` (0: on the interrupted one), before the kernel's own
/// handler or instead of it.
fn installed(slot: &Slot, entry: extern "C" fn(), vector: u8, stack: Option<u8>, instead: bool, work: impl FnOnce()) {
    // SAFETY: the CPU itself reads the gate.
    let before = unsafe { gate_of(vector).read_volatile() };
    assert!(before[0] & PRESENT != 0, "the kernel has no gate for vector {vector}");
    slot.next.store(if instead { 0 } else { handler_of(before) }, Ordering::Relaxed);
    slot.count.store(0, Ordering::Relaxed);
    slot.second.store(0, Ordering::Relaxed);
    slot.dr6.store(0, Ordering::Relaxed);
    let [mut low, high] = with_handler(before, entry as *const () as u64);
    if let Some(stack) = stack {
        low = low & !STACK_MASK | u64::from(stack) << STACK_SHIFT;
    }
    // SAFETY: (1) the entry takes what the CPU pushes for a vector without an error code, and keeps all registers.
    unsafe { set_gate(vector, [low, high]) };
    work();
    // SAFETY: (1) what was there.
    unsafe { set_gate(vector, before) };
}

/// Runs `work` while the suite is the debugger.
pub(crate) fn with_debugger(work: impl FnOnce(&Slot)) {
    installed(&DEBUGGER, enter_debugger, DEBUG, None, true, || work(&DEBUGGER));
}

/// Runs `work` while the suite sees interrupt `vector` before the kernel does.
pub(crate) fn with_observer(vector: u8, stack: Option<u8>, work: impl FnOnce(&Slot)) {
    installed(&FIRST, enter_first, vector, stack, false, || work(&FIRST));
}

/// The same for another one within `outer`'s, which does `action` the next time it is called, before the kernel's own handler.
pub(crate) fn with_inner_observer(vector: u8, outer: &Slot, action: &mut dyn FnMut(), work: impl FnOnce(&Slot)) {
    let mut action = action;
    installed(&SECOND, enter_second, vector, None, false, || {
        outer.action.store((&raw mut action).cast(), Ordering::Relaxed);
        work(&SECOND);
        outer.action.store(core::ptr::null_mut(), Ordering::Relaxed);
    });
}

/// The stack pointers of the interrupt stack table, by the CPU's own numbers.
pub(crate) fn interrupt_stacks() -> [u64; 7] {
    let selector: u64;
    // SAFETY: reading TR has no effect. The descriptor and the task state are there, since the CPU uses them.
    unsafe {
        asm!("str {}", out(reg) selector, options(nomem, nostack, preserves_flags));
        let table: *const u64 = core::ptr::with_exposed_provenance(sgdt().base.as_u64() as usize);
        let (low, high) = (table.add(selector as usize / 8).read(), table.add(selector as usize / 8 + 1).read());
        let base = low >> 16 & 0xff_ffff | (low >> 56 & 0xff) << 24 | high << 32;
        let task: *const TaskStateSegment = core::ptr::with_exposed_provenance(base as usize);
        (&raw const (*task).interrupt_stack_table).cast::<[u64; 7]>().read_unaligned()
    }
}
