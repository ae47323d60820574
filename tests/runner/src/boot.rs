//! One boot: QEMU is started, read from, and ended if it doesn't end by itself.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::command;
use crate::ending::Ending;
use crate::error::Error;
use crate::gdb::Gdb;
use crate::image;
use crate::inputs;
use crate::lines::LineEnds;
use crate::machine::Machine;
use crate::monitor::Monitor;
use crate::options::Boot;
use crate::summary::Summary;
use crate::terminal::Terminal;
use crate::transcript::Transcript;
use crate::verdict::judge;

/// How often an end of the process is looked for while its output stays open.
const LOOK: Duration = Duration::from_millis(20);
/// How long output is waited for after the process has ended; another one may hold the pipe open.
const DRAIN: Duration = Duration::from_secs(1);

/// What came of a boot.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) passed: bool,
    /// The guest's own counts, when its last line is a summary.
    pub(crate) summary: Option<Summary>,
}

/// Boots and tells whether it passed.
pub(crate) fn run(boot: &Boot) -> Result<bool, Error> {
    observe(boot).map(|outcome| outcome.passed)
}

/// Boots, shows the output, judges, and explains a failure on standard error.
pub(crate) fn observe(boot: &Boot) -> Result<Outcome, Error> {
    let Some(interval) = boot.nmis else {
        return watched(boot, &[], None);
    };
    let folder = socket_folder()?;
    let monitor = Monitor::in_folder(folder.path());
    // Firmware lets NMIs through, and a kernel has no handler for them at first: not before it has said something.
    let (begun, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let sender = scope.spawn(|| monitor.send_nmis(interval, &begun, &stop));
        let outcome = watched(boot, &monitor.options(), Some(&begun));
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap_or_default();
        if !boot.dry_run {
            eprintln!("qemu-runner: {sent} NMIs sent through the monitor");
        }
        outcome
    })
}

fn socket_folder() -> Result<tempfile::TempDir, Error> {
    tempfile::tempdir().map_err(|error| Error::new(format!("cannot make a folder for a socket: {error}")))
}

/// Boots under the debugger stub, with the guest stopped at its first instruction and in the hands of `driver`, on a thread of
/// its own. `options` are more of QEMU's. The driver sees to it that the guest ends; when the time is up, its connection does.
pub(crate) fn drive<T: Send>(
    boot: &Boot,
    options: &[&str],
    driver: impl FnOnce(Gdb) -> Result<T, Error> + Send,
) -> Result<(Outcome, Result<T, Error>), Error> {
    let machine = image::machine_of(&boot.image)?;
    let folder = socket_folder()?;
    let socket = folder.path().join("gdb");
    let mut stub = OsString::from("unix:");
    stub.push(&socket);
    stub.push(",server=on,wait=off");
    let mut extra = vec!["-S".into(), "-gdb".into(), stub];
    extra.extend(options.iter().map(OsString::from));
    thread::scope(|scope| {
        let drive = scope.spawn(|| driver(Gdb::connect(&socket, machine)?));
        let outcome = watched(boot, &extra, None)?;
        let driven = drive.join().unwrap_or_else(|_| Err(Error::new("the driver of the guest panicked")));
        Ok((outcome, driven))
    })
}

/// `begun` is set when the guest prints something.
fn watched(boot: &Boot, extra: &[OsString], begun: Option<&AtomicBool>) -> Result<Outcome, Error> {
    let machine = image::machine_of(&boot.image)?;
    let files = inputs::check(&boot.inputs)?;
    let mut arguments = command::arguments(boot, machine, &files, Terminal::on_stdout());
    arguments.extend_from_slice(extra);
    let program = machine.program();
    if boot.dry_run {
        println!("{}", command::quoted(&program, &arguments));
        return Ok(Outcome { passed: true, summary: None });
    }

    let mut qemu = Qemu::start(Command::new(&program).args(&arguments)).map_err(|error| {
        let program = program.to_string_lossy();
        match error.kind() {
            io::ErrorKind::NotFound => Error::new(format!(
                "{program} is not installed: ./bootstrap installs it (Debian, Ubuntu: package {})",
                machine.package()
            )),
            _ => Error::new(format!("cannot start {program}: {error}")),
        }
    })?;
    if boot.gdb {
        eprintln!("qemu-runner: waiting for the debugger: gdb {} -ex 'target remote :1234'", boot.image.display());
    }
    let mut transcript = Transcript::of(boot);
    let ending = qemu.watch(boot.time_limit(), |speaker, bytes| {
        match speaker {
            Speaker::Guest => {
                begun.inspect(|begun| begun.store(true, Ordering::Relaxed));
                transcript.guest_says(bytes);
            }
            Speaker::Qemu => transcript.qemu_says(bytes),
        }
        if boot.quiet { Ok(()) } else { speaker.show(bytes) }
    })?;
    transcript.finish();

    let verdict = judge(ending, &transcript, boot);
    let summary = transcript.summary();
    match &verdict {
        Ok(()) if boot.quiet && boot.suite.is_some() => println!("{}", transcript.last_line()),
        Ok(()) => {}
        Err(reason) => {
            if boot.quiet {
                transcript.tail().for_each(|line| eprintln!("{line}"));
            }
            eprintln!("qemu-runner: {}: {reason}", label(boot, machine));
        }
    }
    Ok(Outcome { passed: verdict.is_ok(), summary })
}

/// The name of a boot in messages: what, on which machine, with what that isn't the default.
pub(crate) fn label(boot: &Boot, machine: Machine) -> String {
    let image = boot.image.file_name().unwrap_or_default().to_string_lossy();
    let mut label = format!("{} on {}", boot.suite.as_deref().unwrap_or(&image), machine.name());
    match (boot.cpu.as_deref(), machine.default_cpu()) {
        (Some(model), _) | (None, Some(model)) => label += &format!(", CPU {model}"),
        (None, None) => label += ", default CPU",
    }
    if let Some(options) = &boot.machine {
        label += &format!(", {options}");
    }
    if !boot.arguments.is_empty() {
        label += &format!(", '{}'", boot.arguments);
    }
    if boot.cpus > 1 {
        label += &format!(", {} CPUs", boot.cpus);
    }
    label
}

/// Who printed something.
#[derive(Clone, Copy, Debug)]
enum Speaker {
    /// The guest, on the serial line: QEMU's standard output.
    Guest,
    /// QEMU itself, on its standard error.
    Qemu,
}

impl Speaker {
    fn show(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Guest => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Self::Qemu => io::stderr().write_all(bytes),
        }
    }
}

/// A running QEMU, ended for certain when this value goes.
struct Qemu {
    process: Child,
    output: Receiver<(Speaker, Vec<u8>)>,
}

impl Qemu {
    fn start(command: &mut Command) -> io::Result<Self> {
        // Without a terminal on its input, QEMU leaves the terminal's settings alone.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_this_process(command);
        let mut process = command.spawn()?;
        // The bound makes QEMU wait for a slow reader of ours instead of filling the memory.
        let (sender, output) = sync_channel(64);
        if let Some(stdout) = process.stdout.take() {
            forward(stdout, Speaker::Guest, sender.clone());
        }
        if let Some(stderr) = process.stderr.take() {
            forward(stderr, Speaker::Qemu, sender);
        }
        Ok(Self { process, output })
    }

    /// Passes everything printed to `with` until the process has ended or the time is up.
    fn watch(
        &mut self,
        limit: Option<Duration>,
        mut with: impl FnMut(Speaker, &[u8]) -> io::Result<()>,
    ) -> Result<Ending, Error> {
        let unreachable_process = |error| Error::new(format!("cannot wait for QEMU: {error}"));
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut ends = LineEnds::default();
        let mut pass_on = |(speaker, bytes): (Speaker, Vec<u8>)| {
            match speaker {
                Speaker::Guest => with(speaker, &ends.convert(&bytes)),
                Speaker::Qemu => with(speaker, &bytes),
            }
            .map_err(|error| Error::output(&error))
        };
        let ending = loop {
            match self.output.recv_timeout(LOOK) {
                Ok(said) => pass_on(said)?,
                Err(RecvTimeoutError::Timeout) => {}
                // It closed its output: that is its end, or nearly so.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(1)),
            }
            if let Some(status) = self.process.try_wait().map_err(unreachable_process)? {
                break status.into();
            }
            if let (Some(limit), Some(deadline)) = (limit, deadline)
                && Instant::now() >= deadline
            {
                self.process.kill().and_then(|()| self.process.wait()).map_err(unreachable_process)?;
                break Ending::TimedOut(limit);
            }
        };
        let drained_by = Instant::now() + DRAIN;
        while let Some(left) = drained_by.checked_duration_since(Instant::now())
            && let Ok(said) = self.output.recv_timeout(left)
        {
            pass_on(said)?;
        }
        Ok(ending)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads `source` to its end on a thread of its own, which nobody waits for.
fn forward(mut source: impl Read + Send + 'static, speaker: Speaker, to: SyncSender<(Speaker, Vec<u8>)>) {
    thread::spawn(move || {
        let mut buffer = [0; 8192];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    if to.send((speaker, buffer[..length].to_vec())).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    });
}

/// Has the kernel end the child when this process is killed, whatever kills it. Elsewhere than on
/// Linux only the terminal's own Ctrl-C, which goes to both processes, does so.
fn end_with_this_process(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
        use std::os::unix::process::CommandExt;

        let parent = getpid();
        let ask = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have gone before the question was asked.
            if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
        };
        // SAFETY: between fork and exec only async-signal-safe work is allowed: `ask` makes two
        // system calls and neither allocates nor locks.
        unsafe { command.pre_exec(ask) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}
