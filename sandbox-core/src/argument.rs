//! What a sandboxed function is called with, and how it gets there.
//!
//! Nothing of the host's is lent to the sandbox: inputs are copied in, outputs copied out after a completed return. What
//! comes out is untrusted, so output types must be valid for every bit pattern; what goes in must have no padding, which
//! could carry the host's secrets. zerocopy's traits say both.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The most arguments a call can have.
pub const MAX_ARGUMENTS: usize = 8;
/// The largest [`Val`], in bytes.
pub const MAX_VALUE: usize = 64;
/// The largest plain return value, in bytes; larger ones are outputs.
pub const MAX_RESULT: usize = 1024;
/// The strictest alignment that a buffer can have.
const MAX_ALIGN: usize = crate::addr::PAGE_SIZE;

/// An input of any length: the sandbox gets a copy. What it does to the copy stays there.
#[derive(Debug)]
pub struct In<'a, T: ?Sized>(pub &'a T);
/// An output: zeroes in the sandbox at first, copied out after a completed return.
#[derive(Debug)]
pub struct Out<'a, T: ?Sized>(pub &'a mut T);
/// Copied in, and out after a completed return.
#[derive(Debug)]
pub struct InOut<'a, T: ?Sized>(pub &'a mut T);
/// A small value, at most [`MAX_VALUE`] bytes.
#[derive(Clone, Copy, Debug)]
pub struct Val<T>(pub T);

mod sealed {
    pub trait Sealed {}
}
use sealed::Sealed;

/// Where an argument stands in the sandbox.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Part {
    pub(crate) address: u64,
    pub(crate) len: u64,
}

/// What the sandboxed side of a call finds at the top of its stack, and where it leaves its result.
#[doc(hidden)]
#[repr(C, align(64))]
#[allow(unreachable_pub)]
pub struct Block {
    pub(crate) parts: [Part; MAX_ARGUMENTS],
    pub(crate) values: [[u8; MAX_VALUE]; MAX_ARGUMENTS],
    pub(crate) result: [u8; MAX_RESULT],
}

const _: () = assert!(size_of::<Block>() <= crate::addr::PAGE_SIZE / 2 && align_of::<Block>().is_multiple_of(16));
const _: () = assert!(core::mem::offset_of!(Block, values).is_multiple_of(MAX_VALUE));
const _: () = assert!(core::mem::offset_of!(Block, result).is_multiple_of(64));

/// Data that can be copied into a sandbox: plain values without padding (zerocopy's `IntoBytes` and `Immutable`), slices of them,
/// and `str`.
///
/// # Safety
///
/// 1. `bytes` covers the whole value; `view` makes a valid reference from a copy of those bytes.
pub unsafe trait Input: 'static {
    /// Alignment in bytes.
    #[doc(hidden)]
    const ALIGN: usize;
    #[doc(hidden)]
    fn bytes(&self) -> &[u8];
    /// # Safety
    ///
    /// 1. `address` is aligned and begins `len` bytes that are valid for `'g` and are what `bytes` gave, or (for an
    ///    [`Output`]) anything.
    #[doc(hidden)]
    unsafe fn view<'g>(address: *const u8, len: usize) -> &'g Self;
}

/// Data that can be copied out of a sandbox: plain values that are valid for every bit pattern (zerocopy's `FromBytes` too), and
/// slices of them.
///
/// # Safety
///
/// 1. Every bit pattern of the right length is a valid value.
pub unsafe trait Output: Input {
    #[doc(hidden)]
    fn bytes_mut(&mut self) -> &mut [u8];
    /// # Safety
    ///
    /// 1. As [`view`](Input::view), and nothing else uses the bytes for `'g`.
    #[doc(hidden)]
    unsafe fn view_mut<'g>(address: *mut u8, len: usize) -> &'g mut Self;
}

// SAFETY: (1) IntoBytes says that all bytes are initialised; the copy has the same bytes and type.
unsafe impl<T: IntoBytes + Immutable + 'static> Input for T {
    const ALIGN: usize = align_of::<T>();

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    unsafe fn view<'g>(address: *const u8, _len: usize) -> &'g T {
        // SAFETY: (1) of this function.
        unsafe { &*address.cast() }
    }
}

// SAFETY: (1) as above, element by element; slices of zero-sized elements don't compile.
unsafe impl<T: IntoBytes + Immutable + 'static> Input for [T] {
    const ALIGN: usize = align_of::<T>();

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    unsafe fn view<'g>(address: *const u8, len: usize) -> &'g [T] {
        const { assert!(size_of::<T>() != 0, "a slice of zero-sized elements has no bytes to pass") };
        // SAFETY: (1) of this function; `len` is a multiple of the element's size.
        unsafe { core::slice::from_raw_parts(address.cast(), len / size_of::<T>()) }
    }
}

// SAFETY: (1) a copy of a str's bytes is UTF-8.
unsafe impl Input for str {
    const ALIGN: usize = 1;

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    unsafe fn view<'g>(address: *const u8, len: usize) -> &'g str {
        // SAFETY: (1) of this function.
        unsafe { core::str::from_utf8_unchecked(core::slice::from_raw_parts(address, len)) }
    }
}

// SAFETY: (1) FromBytes says so.
unsafe impl<T: FromBytes + IntoBytes + Immutable + 'static> Output for T {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_mut_bytes()
    }

    unsafe fn view_mut<'g>(address: *mut u8, _len: usize) -> &'g mut T {
        // SAFETY: (1) of this function.
        unsafe { &mut *address.cast() }
    }
}

// SAFETY: (1) FromBytes says so of the elements.
unsafe impl<T: FromBytes + IntoBytes + Immutable + 'static> Output for [T] {
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.as_mut_bytes()
    }

    unsafe fn view_mut<'g>(address: *mut u8, len: usize) -> &'g mut [T] {
        const { assert!(size_of::<T>() != 0, "a slice of zero-sized elements has no bytes to pass") };
        // SAFETY: (1) of this function; `len` is a multiple of the element's size.
        unsafe { core::slice::from_raw_parts_mut(address.cast(), len / size_of::<T>()) }
    }
}

/// How an argument's bytes travel.
#[doc(hidden)]
pub trait Transfer {
    /// Length of the buffer it needs, or `None` if it goes into the block.
    fn buffer(&self) -> Option<usize>;
    /// What to copy in; `None`: zeroes.
    fn input(&self) -> Option<&[u8]>;
    /// Where to copy out to.
    fn output(&mut self) -> Option<&mut [u8]>;
}

/// One argument of a sandboxed call: [`In`], [`Out`], [`InOut`] or [`Val`].
pub trait Argument: Transfer + Sealed {
    /// What the function receives.
    type Guest<'g>;

    /// # Safety
    ///
    /// 1. Runs in the sandbox; `part` is where [`Transfer`] put this argument, for `'g`.
    #[doc(hidden)]
    unsafe fn guest<'g>(part: Part) -> Self::Guest<'g>;
}

fn pointer(part: Part) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(part.address as usize)
}

impl<T: Input + ?Sized> Sealed for In<'_, T> {}
impl<T: Input + ?Sized> Transfer for In<'_, T> {
    fn buffer(&self) -> Option<usize> {
        const { assert!(T::ALIGN <= MAX_ALIGN, "the alignment is larger than a page") };
        Some(self.0.bytes().len())
    }

    fn input(&self) -> Option<&[u8]> {
        Some(self.0.bytes())
    }

    fn output(&mut self) -> Option<&mut [u8]> {
        None
    }
}
impl<T: Input + ?Sized> Argument for In<'_, T> {
    type Guest<'g> = &'g T;

    unsafe fn guest<'g>(part: Part) -> Self::Guest<'g> {
        // SAFETY: (1) of this function.
        unsafe { T::view(pointer(part), part.len as usize) }
    }
}

impl<T: Output + ?Sized> Sealed for Out<'_, T> {}
impl<T: Output + ?Sized> Transfer for Out<'_, T> {
    fn buffer(&self) -> Option<usize> {
        const { assert!(T::ALIGN <= MAX_ALIGN, "the alignment is larger than a page") };
        Some(self.0.bytes().len())
    }

    fn input(&self) -> Option<&[u8]> {
        None
    }

    fn output(&mut self) -> Option<&mut [u8]> {
        Some(self.0.bytes_mut())
    }
}
impl<T: Output + ?Sized> Argument for Out<'_, T> {
    type Guest<'g> = &'g mut T;

    unsafe fn guest<'g>(part: Part) -> Self::Guest<'g> {
        // SAFETY: (1) of this function; each argument has a buffer of its own.
        unsafe { T::view_mut(pointer(part), part.len as usize) }
    }
}

impl<T: Output + ?Sized> Sealed for InOut<'_, T> {}
impl<T: Output + ?Sized> Transfer for InOut<'_, T> {
    fn buffer(&self) -> Option<usize> {
        const { assert!(T::ALIGN <= MAX_ALIGN, "the alignment is larger than a page") };
        Some(self.0.bytes().len())
    }

    fn input(&self) -> Option<&[u8]> {
        Some(self.0.bytes())
    }

    fn output(&mut self) -> Option<&mut [u8]> {
        Some(self.0.bytes_mut())
    }
}
impl<T: Output + ?Sized> Argument for InOut<'_, T> {
    type Guest<'g> = &'g mut T;

    unsafe fn guest<'g>(part: Part) -> Self::Guest<'g> {
        // SAFETY: (1) of this function; each argument has a buffer of its own.
        unsafe { T::view_mut(pointer(part), part.len as usize) }
    }
}

impl<T: IntoBytes + Immutable + Copy + 'static> Sealed for Val<T> {}
impl<T: IntoBytes + Immutable + Copy + 'static> Transfer for Val<T> {
    fn buffer(&self) -> Option<usize> {
        None
    }

    fn input(&self) -> Option<&[u8]> {
        const {
            assert!(size_of::<T>() <= MAX_VALUE && align_of::<T>() <= MAX_VALUE, "too large for Val: pass it as In");
        };
        Some(self.0.as_bytes())
    }

    fn output(&mut self) -> Option<&mut [u8]> {
        None
    }
}
impl<T: IntoBytes + Immutable + Copy + 'static> Argument for Val<T> {
    type Guest<'g> = T;

    unsafe fn guest<'g>(part: Part) -> Self::Guest<'g> {
        // SAFETY: (1) of this function: a copy of a valid value's bytes, in a place aligned to `MAX_VALUE`.
        unsafe { pointer(part).cast::<T>().read() }
    }
}

/// The arguments of a sandboxed call: a tuple of up to [`MAX_ARGUMENTS`].
pub trait Arguments: Sealed {
    /// How many.
    const COUNT: usize;

    /// Visits each in order, until one fails.
    #[doc(hidden)]
    fn each<E>(&mut self, visit: impl FnMut(usize, &mut dyn Transfer) -> Result<(), E>) -> Result<(), E>;
}

/// A function that can be called in a sandbox with the arguments `T`: an ordinary `fn` item, or a closure that captures
/// nothing. `In<T>` reaches it as `&T`, `Out<T>` and `InOut<T>` as `&mut T`, `Val<T>` as `T`.
pub trait Function<T: Arguments, R>: Copy + 'static {
    /// # Safety
    ///
    /// 1. Runs in the sandbox; `parts` is where the arguments were put, for as long as this runs.
    #[doc(hidden)]
    unsafe fn invoke(self, parts: &[Part; MAX_ARGUMENTS]) -> R;
}

macro_rules! tuples {
    ($(($($name:ident $index:tt)*))*) => {$(
        impl<$($name: Argument),*> Sealed for ($($name,)*) {}

        impl<$($name: Argument),*> Arguments for ($($name,)*) {
            const COUNT: usize = 0 $(+ { let _ = $index; 1 })*;

            #[allow(unused_mut, unused_variables)]
            #[inline]
            fn each<Err>(&mut self, mut visit: impl FnMut(usize, &mut dyn Transfer) -> Result<(), Err>) -> Result<(), Err> {
                $(visit($index, &mut self.$index)?;)*
                Ok(())
            }
        }

        impl<Func, Ret, $($name: Argument),*> Function<($($name,)*), Ret> for Func
        where
            Func: Copy + 'static + for<'g> Fn($($name::Guest<'g>),*) -> Ret,
        {
            #[allow(unused_variables, unused_unsafe)]
            #[inline]
            unsafe fn invoke(self, parts: &[Part; MAX_ARGUMENTS]) -> Ret {
                // SAFETY: (1) of this function.
                unsafe { self($($name::guest(parts[$index])),*) }
            }
        }
    )*};
}

tuples! {
    ()
    (A0 0)
    (A0 0 A1 1)
    (A0 0 A1 1 A2 2)
    (A0 0 A1 1 A2 2 A3 3)
    (A0 0 A1 1 A2 2 A3 3 A4 4)
    (A0 0 A1 1 A2 2 A3 3 A4 4 A5 5)
    (A0 0 A1 1 A2 2 A3 3 A4 4 A5 5 A6 6)
    (A0 0 A1 1 A2 2 A3 3 A4 4 A5 5 A6 6 A7 7)
}

/// What a call runs in the sandbox: unpacks the arguments, calls the function, leaves the result.
///
/// # Safety
///
/// 1. Runs in the sandbox, on a block that [`Sandbox::start`](crate::Sandbox::start) filled for the same `F`, `T` and `R`.
pub(crate) unsafe extern "C" fn thunk<F: Function<T, R>, T: Arguments, R>(block: *mut Block) {
    const {
        assert!(size_of::<F>() == 0, "pass the function itself, or a closure that captures nothing");
        assert!(size_of::<R>() <= MAX_RESULT && align_of::<R>() <= 64, "the result is too large: make it an output");
    }
    // SAFETY: `F` has no bytes, and the caller of `start` had a value of it, so one exists here too; the block is the sandbox's
    // own memory, filled as (1) says, with room and alignment for `R`.
    unsafe {
        let function = core::ptr::NonNull::<F>::dangling().read();
        let result = function.invoke(&(*block).parts);
        (&raw mut (*block).result).cast::<R>().write(result);
    }
}
