//! What sandboxes compute, and how it ends when it is no good.

use sandbox_mode::{Access, ExitReason, FaultKind};

/// So many steps of a computation whose result depends on every one.
pub(crate) fn compute(mut state: u64, steps: u64) -> u64 {
    for _ in 0..steps {
        state = core::hint::black_box(
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407).rotate_left(17),
        );
    }
    state
}

/// Writes to `output` what it makes of `input`, and returns their sum.
pub(crate) fn transform(input: &[u8], output: &mut [u8], key: u8) -> u64 {
    for (from, to) in input.iter().zip(output.iter_mut()) {
        *to = from.rotate_left(3) ^ key;
    }
    output.iter().map(|&byte| u64::from(byte)).sum()
}

/// Reads the byte at `address`.
pub(crate) fn read(address: u64) -> u64 {
    // SAFETY: for a sandbox, which ends if there is nothing to read.
    u64::from(unsafe { core::ptr::with_exposed_provenance::<u8>(address as usize).read_volatile() })
}

/// Writes to the byte at `address`.
pub(crate) fn write(address: u64) -> u64 {
    // SAFETY: for a sandbox, which ends if it may not.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(address as usize).write_volatile(1) };
    0
}

/// Calls itself until there is no stack left.
pub(crate) fn dig(depth: u64) -> u64 {
    let here = core::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { dig(core::hint::black_box(depth + 1)) ^ here[(depth % 64) as usize] }
}

/// Whether `reason` is a refusal of `access` for `kind`.
pub(crate) fn is_fault(reason: ExitReason, access: Access, kind: FaultKind) -> bool {
    matches!(reason, ExitReason::MemoryFault(fault) if fault.access == access && fault.kind == kind)
}
