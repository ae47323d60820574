#![no_std]
#![no_main]
//! TBD
platform_qemu::main!(main);
fn main() -> bool {
    true
}
