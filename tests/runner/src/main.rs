//! Boots a kernel image in QEMU, shows what it prints and judges how it ended.
//!
//! It is Cargo's runner for both bare-metal targets and what the recipes of the justfile call. Two
//! rules hold whatever the guest or QEMU does: the runner ends within the time limit, and only a
//! guest that says "pass" by the exit status agreed on (and prints what was asked for) passes.
//! Exit codes: 0 pass, 1 the guest failed, 2 usage or environment.

mod boot;
mod campaign;
mod command;
mod ending;
mod error;
mod gdb;
mod guest;
mod image;
mod inject;
mod injection;
mod inputs;
mod kernel;
mod lines;
mod machine;
mod monitor;
mod moved;
mod options;
mod packet;
mod route;
mod suite;
mod summary;
mod tally;
mod terminal;
mod trace;
mod trace_log;
mod transcript;
mod verdict;
mod windows;

use std::process::ExitCode;

use options::Task;

fn main() -> ExitCode {
    let done = Task::from_command_line(std::env::args_os().skip(1)).and_then(|task| match task {
        Task::Help => {
            print!("{}", options::HELP);
            Ok(true)
        }
        Task::Boot(options) => boot::run(&options),
        Task::Suite(boots) => suite::run(&boots),
        Task::Inject(boots) => inject::run(&boots),
        Task::Trace(boots) => trace::run(&boots),
        Task::Tally(command) => tally::run(&command),
        Task::Check(files) => inputs::check(&files).map(|_| true),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("qemu-runner: {error}");
            ExitCode::from(2)
        }
    }
}
