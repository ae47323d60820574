//! Lets the linker find this kernel's own `kernel.ld`.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo::rustc-link-search={root}");
    println!("cargo::rerun-if-changed=kernel.ld");
}
