//! Lets the linker find the machines' linker scripts by file name.

use std::{env, path::Path};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let link = Path::new(&root).join("link");
    println!("cargo::rustc-link-search={}", link.display());
    // Cargo would not link again for a changed script: it only knows its name.
    for script in ["q35.ld", "virt.ld"] {
        println!("cargo::rerun-if-changed={}", link.join(script).display());
    }
}
