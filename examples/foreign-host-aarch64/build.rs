//! Lets the linker find this kernel's linker script, `kernel.ld`, by its file name.

use std::env;

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rustc-link-search={root}");
    // Cargo would not link again for a changed script: it only knows its name.
    println!("cargo::rerun-if-changed=kernel.ld");
}
