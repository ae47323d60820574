//! Tests of the library on the build machine, with the sample files.

mod certificate;
mod content;
mod picture;
mod status;
mod terminal;

/// The sample files.
mod files {
    pub(super) const PICTURE: &[u8] = include_bytes!("../../files/picture.png");
    pub(super) const PICTURE_SHA256: &str = include_str!("../../files/picture.png.sha256");
    pub(super) const CORRUPT: &[u8] = include_bytes!("../../files/corrupt.png");
    pub(super) const INTERLACED: &[u8] = include_bytes!("../../files/interlaced.png");
    pub(super) const PANIC: &[u8] = include_bytes!("../../files/panic.png");
    pub(super) const DEEP: &[u8] = include_bytes!("../../files/deep.png");
    pub(super) const CERTIFICATE: &[u8] = include_bytes!("../../files/certificate.der");
}

/// The same "random" numbers at every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
