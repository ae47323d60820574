//! Lets the linker find the machine's linker script, `kernel.ld`, by its file name.

use std::{env, path::Path};

fn main() {
    let machine = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("aarch64") => "virt",
        _ => "q35",
    };
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let link = Path::new(&root).join("link").join(machine);
    println!("cargo::rustc-link-search={}", link.display());
    // Cargo would not link again for a changed script: it only knows its name.
    println!("cargo::rerun-if-changed={}", link.join("kernel.ld").display());
}
