//! What the command line hands to the kernel, through fw_cfg.
//!
//! * `opt/sandbox/args`: the argument string;
//! * `opt/sandbox/file0`, `file1`, …: files, and `opt/sandbox/name0`, `name1`, … their names.

use alloc::{format, string::String, vec::Vec};

use spin::Once;

use crate::{fw_cfg, println};

/// A file given on QEMU's command line.
#[derive(Clone, Copy)]
pub struct File {
    /// Its name; empty if the command line gave none.
    pub name: &'static str,
    /// Its contents.
    pub bytes: &'static [u8],
}

struct Given {
    arguments: &'static str,
    files: Vec<File>,
}

static GIVEN: Once<Given> = Once::new();

/// The argument string; empty if the command line gave none.
pub fn arguments() -> &'static str {
    GIVEN.get().map_or("", |given| given.arguments)
}

/// The files, in the order of their numbers.
pub fn files() -> impl Iterator<Item = File> {
    GIVEN.get().into_iter().flat_map(|given| given.files.iter().copied())
}

/// Reads everything into the heap, for good.
pub(crate) fn init() {
    let directory = fw_cfg::directory().unwrap_or_else(|error| {
        println!("no arguments and no files: {error}");
        Vec::new()
    });
    let read = |name: &str| -> Option<&'static [u8]> {
        let entry = directory.iter().find(|entry| entry.name == name)?;
        match entry.read() {
            Ok(bytes) => Some(bytes.leak()),
            Err(error) => panic!("{name}: {error}"),
        }
    };
    let read_text = |name: &str| -> &'static str {
        read(name).map_or("", |bytes| String::from_utf8_lossy(bytes).into_owned().leak())
    };
    let files = (0..).map_while(|i| {
        Some(File { bytes: read(&format!("opt/sandbox/file{i}"))?, name: read_text(&format!("opt/sandbox/name{i}")) })
    });
    GIVEN.call_once(|| Given { arguments: read_text("opt/sandbox/args"), files: files.collect() });
}
