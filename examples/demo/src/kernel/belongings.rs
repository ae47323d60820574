//! What the kernel has that a sandbox must neither change nor see.

use alloc::boxed::Box;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use demo::hostile::Target;

const DATA: u64 = 0x6b65_726e_656c_2121;

static KERNEL_DATA: AtomicU64 = AtomicU64::new(DATA);

const SECRET: u8 = 0x5a;

/// A variable in the kernel's image, and a secret on its heap.
pub(crate) struct Belongings {
    secret: Box<u8>,
}

impl Belongings {
    pub(crate) fn new() -> Self {
        Belongings { secret: Box::new(SECRET) }
    }

    pub(crate) fn data(&self) -> Target {
        Target::at(&KERNEL_DATA)
    }

    pub(crate) fn secret(&self) -> Target {
        Target::at(&*self.secret)
    }

    pub(crate) fn is_data_unchanged(&self) -> bool {
        KERNEL_DATA.load(Ordering::Relaxed) == DATA
    }

    pub(crate) fn is_secret_unchanged(&self) -> bool {
        // The compiler is not to know what it is.
        *black_box(&*self.secret) == SECRET
    }
}
