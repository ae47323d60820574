//! What the machine tells: its device tree, and the arguments that QEMU's fw_cfg has for the kernel.

use dtoolkit::fdt::Fdt;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

use crate::layout::{RAM, device, direct};

/// What the kernel needs to know of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    /// Bytes of RAM from its start on.
    pub(crate) ram: u64,
    /// Bytes that the device tree takes of it.
    pub(crate) tree: u64,
    /// Physical addresses of the interrupt controller's distributor and first redistributor, and of the clock.
    pub(crate) distributor: u64,
    pub(crate) redistributor: u64,
    pub(crate) clock: u64,
    fw_cfg: u64,
}

/// Reads the device tree.
pub(crate) fn find() -> Machine {
    // SAFETY: QEMU puts a device tree at the start of RAM, which all tables map.
    let tree = unsafe { Fdt::from_raw(direct(RAM)) }.expect("QEMU puts a device tree at the start of RAM");
    let block = |name: &str, index: usize| -> (u64, u64) {
        let find = || {
            let node = tree.root().children().find(|node| node.is_compatible(name))?;
            let region = node.reg().ok()??.nth(index)?;
            Some((region.address().ok()?, region.size().ok()?))
        };
        find().unwrap_or_else(|| panic!("the device tree has no {name}"))
    };
    let is_ram = |kind: &str| kind == "memory";
    let ram = tree.root().children().find_map(|node| {
        let kind = node.property("device_type")?;
        kind.value_as::<&str>().is_ok_and(is_ram).then_some(())?;
        let region = node.reg().ok()??.next()?;
        (region.address::<u64>().ok()? == RAM).then_some(region.size::<u64>().ok()?)
    });
    Machine {
        ram: ram.expect("RAM begins where it always did"),
        tree: tree.data().len() as u64,
        distributor: block("arm,gic-v3", 0).0,
        redistributor: block("arm,gic-v3", 1).0,
        clock: block("arm,pl031", 0).0,
        fw_cfg: block("qemu,fw-cfg-mmio", 0).0,
    }
}

/// Registers of fw_cfg (QEMU's docs/specs/fw_cfg): data, and the selector, which is big-endian.
const SELECTOR: usize = 8;
const DIRECTORY: u16 = 0x19;
/// An entry of the directory: size, key, reserved, name.
const NAME: usize = 56;

/// As much of the arguments as is kept.
const MOST: usize = 256;
static ARGUMENTS: spin::Once<([u8; MOST], usize)> = spin::Once::new();

impl Machine {
    /// The kernel's arguments: fw_cfg's file `opt/sandbox/args`. To be called first while all devices are mapped.
    pub(crate) fn arguments(&self) -> &'static str {
        let (bytes, length) = ARGUMENTS.call_once(|| {
            let mut bytes = [0; MOST];
            let Some((key, size)) = self.entry(b"opt/sandbox/args") else { return (bytes, 0) };
            assert!(size <= MOST, "the arguments are longer than {MOST} bytes");
            self.select(key);
            bytes[..size].fill_with(|| self.byte());
            (bytes, size)
        });
        let text = core::str::from_utf8(&bytes[..*length]).expect("the arguments are text");
        text.trim_end_matches('\0')
    }

    fn entry(&self, wanted: &[u8]) -> Option<(u16, usize)> {
        self.select(DIRECTORY);
        let count = u32::from_be_bytes([(); 4].map(|()| self.byte()));
        (0..count).find_map(|_| {
            let size = u32::from_be_bytes([(); 4].map(|()| self.byte()));
            let key = u16::from_be_bytes([(); 2].map(|()| self.byte()));
            let _reserved = [(); 2].map(|()| self.byte());
            let name = [(); NAME].map(|()| self.byte());
            let name = name.split(|&byte| byte == 0).next()?;
            (name == wanted).then_some((key, size as usize))
        })
    }

    fn select(&self, key: u16) {
        // SAFETY: the device's selector, driven here alone.
        unsafe { device(self.fw_cfg).add(SELECTOR).cast::<u16>().write_volatile(key.to_be()) };
    }

    fn byte(&self) -> u8 {
        // SAFETY: the device's data register.
        unsafe { device(self.fw_cfg).read_volatile() }
    }
}
