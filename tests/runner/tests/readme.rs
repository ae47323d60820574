//! The README shows a whole program: it must be the one that is built and booted.

#[test]
fn the_first_example_is_hello() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let read = |name: &str| std::fs::read_to_string(format!("{root}/{name}")).expect(name);
    let readme = read("README.md");
    let block = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next());
    assert_eq!(
        block,
        Some(read("examples/hello/src/main.rs").as_str()),
        "copy examples/hello/src/main.rs into README.md"
    );
}
