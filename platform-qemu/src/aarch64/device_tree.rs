//! What the kernel wants from the device tree: where RAM is and where the devices are.

use super::machine_map::RAM_START;
use crate::memory::direct;
use core::ops::Range;
use dtoolkit::fdt::Fdt;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// Physical addresses of the devices, from the device tree.
pub(super) struct Devices {
    /// The interrupt distributor.
    pub(super) gicd: u64,
    /// The first redistributor, of the boot CPU.
    pub(super) gicr: u64,
    /// The fw_cfg registers.
    pub(super) fw_cfg: u64,
}

/// The device tree, where QEMU left it.
pub(super) struct DeviceTree(Fdt<'static>);

impl DeviceTree {
    /// Finds the device tree at the start of RAM.
    pub(super) fn find() -> Self {
        // SAFETY: QEMU puts a device tree there, nothing overwrites it (its frames are reserved),
        // and the boot tables as well as the final ones map it. Were there none, the magic number
        // would be wrong, which is an error, not undefined behaviour.
        let tree = unsafe { Fdt::from_raw(direct(RAM_START)) };
        Self(tree.expect("no device tree at the start of RAM"))
    }

    /// The physical range that the tree itself takes.
    pub(super) fn range(&self) -> Range<u64> {
        RAM_START..RAM_START + self.0.data().len() as u64
    }

    /// The ranges of RAM.
    pub(super) fn memory(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        self.0
            .root()
            .children()
            .filter(|node| node.property("device_type").is_some_and(|kind| kind.value_as::<&str>() == Ok("memory")))
            .filter_map(|node| node.reg().ok().flatten())
            .flatten()
            .filter_map(|region| {
                let start: u64 = region.address().ok()?;
                let size: u64 = region.size().ok()?;
                Some(start..start + size)
            })
    }

    /// Calls `visit` with the affinity of each CPU, as in MPIDR_EL1.
    pub(super) fn each_cpu(&self, mut visit: impl FnMut(u64)) {
        let Some(cpus) = self.0.find_node("/cpus") else {
            return;
        };
        cpus.children()
            .filter(|node| node.property("device_type").is_some_and(|kind| kind.value_as::<&str>() == Ok("cpu")))
            .filter_map(|node| node.reg().ok().flatten()?.next()?.address().ok())
            .for_each(&mut visit);
    }

    /// The devices that the kernel drives.
    pub(super) fn devices(&self) -> Devices {
        Devices {
            gicd: self.register("arm,gic-v3", 0),
            gicr: self.register("arm,gic-v3", 1),
            fw_cfg: self.register("qemu,fw-cfg-mmio", 0),
        }
    }

    /// The address of register block `index` of the first device that is compatible with `name`.
    fn register(&self, name: &str, index: usize) -> u64 {
        self.0
            .root()
            .children()
            .find(|node| node.is_compatible(name))
            .and_then(|node| node.reg().ok().flatten()?.nth(index)?.address().ok())
            .unwrap_or_else(|| panic!("the device tree has no {name}"))
    }
}
