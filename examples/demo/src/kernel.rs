//! The demo, from the first line that it prints to its verdict.

mod attacks;
mod belongings;
mod call_cost;
mod files;
mod parsing;
mod report;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};

use demo::digest::Digest;
use demo::escape::Escaped;
use demo::terminal::Terminal;
use platform_qemu::files::File;
use platform_qemu::host::{Qemu, start_hal};
use platform_qemu::{memory, println};
use sandbox_mode::Hal;

use self::attacks::Attacks;
use self::belongings::Belongings;
use self::parsing::{Failure, decode};
use self::report::{fact, heading};

/// The sample picture, and the SHA-256 of its pixels as another decoder gives them.
const SAMPLE: File = File { name: "picture.png", bytes: include_bytes!("../../files/picture.png") };
const SAMPLE_DIGEST: &str = include_str!("../../files/picture.png.sha256");

const MACHINE: &str = if cfg!(target_arch = "x86_64") { "x86-64, ring 3" } else { "AArch64, EL0" };

/// Runs the demo; whether all went well.
pub(crate) fn main() -> bool {
    println!("Sandbox Mode: untrusted files, parsed inside a kernel ({MACHINE})");
    let failures = match start_hal() {
        Ok(hal) => run(hal),
        Err(error) => vec![error.to_string()],
    };
    println!();
    for failure in &failures {
        println!("failed: {failure}");
    }
    if failures.is_empty() {
        println!("All attacks were contained.");
    }
    failures.is_empty()
}

/// What went wrong.
fn run(hal: &Hal<Qemu>) -> Vec<String> {
    let mut failures = Vec::new();
    let belongings = Belongings::new();
    let free_frames = memory::free_frames();

    let terminal = Terminal::from_arguments(platform_qemu::files::arguments());
    // What is decoded again at the end: the first of these pictures, else the sample.
    let mut known = None;
    for file in platform_qemu::files::files() {
        match files::show(hal, file, terminal) {
            Ok(digest) => known = known.or(digest.map(|digest| (file, digest.to_string()))),
            Err(failure) => {
                println!("  {failure}");
                failures.push(format!("{}: {failure}", Escaped(file.name.as_bytes())));
            }
        }
    }

    let (good, good_digest) = known.unwrap_or((SAMPLE, SAMPLE_DIGEST.trim_end().to_string()));

    let mut attacks = Attacks { hal, failures: &mut failures };
    attacks.bad_files();
    if let Err(failure) = attacks.hostile_parsers(&belongings) {
        failures.push(format!("an attack could not be tried: {failure}"));
    }

    heading("The kernel afterwards");
    let mut check = |what: &str, is_good: bool, good: &str, bad: &str| {
        fact(what, if is_good { good } else { bad });
        if !is_good {
            failures.push(format!("{what}: {bad}"));
        }
    };
    let again = digest_of(hal, good).map(|digest| digest.to_string());
    let name = Escaped(good.name.as_bytes()).to_string();
    check(
        "parser",
        again == Ok(good_digest),
        &format!("decodes {name} as before"),
        &format!("{name} is NOT AS BEFORE"),
    );
    check("data", belongings.is_data_unchanged(), "unchanged", "CHANGED");
    check("secret", belongings.is_secret_unchanged(), "unchanged", "CHANGED");
    let (before, after) = (free_frames, memory::free_frames());
    let frames = format!("{after} free frames, {before} before the first file");
    check("memory", before == after, &format!("no frame lost ({after} free)"), &frames);
    match call_cost::measure(hal) {
        Ok(cost) => fact("empty call", cost),
        Err(error) => failures.push(format!("empty call: {error}")),
    }
    failures
}

fn digest_of(hal: &Hal<Qemu>, file: File) -> Result<Digest, Failure> {
    Ok(Digest::of(decode(hal, file.bytes)?.picture()?.pixels()))
}
