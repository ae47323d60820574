//! The sum of what Cargo's test runs report, one line for each test binary, as one line at the end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::summary::Summary;

/// Runs `command`, shows what it prints and closes with the sum. Passes when the command does and
/// a test was run.
pub(crate) fn run(command: &[OsString]) -> Result<bool, Error> {
    let program = command[0].to_string_lossy();
    let mut process = Command::new(&command[0])
        .args(&command[1..])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Error::new(format!("cannot start {program}: {error}")))?;
    let mut sum = Summary::default();
    if let Some(stdout) = process.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            std::io::stdout().write_all(&line).map_err(|error| Error::output(&error))?;
            if let Some(counts) = Summary::of_cargo_line(String::from_utf8_lossy(&line).trim_end()) {
                sum += counts;
            }
            line.clear();
        }
    }
    let status = process.wait().map_err(|error| Error::new(format!("cannot wait for {program}: {error}")))?;
    if !status.success() && sum.failed == 0 {
        // What failed was no test but, say, the build.
        sum.failed = 1;
        eprintln!("qemu-runner: {program}: {status}");
    }
    println!("{sum}");
    if sum == Summary::default() {
        eprintln!("qemu-runner: {program}: no test was run");
    }
    Ok(status.success() && sum.is_pass())
}
