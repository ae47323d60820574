//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use crate::error::Error;
use crate::inputs::Inputs;

pub(crate) const HELP: &str = "\
Boots a kernel image in QEMU, shows what it prints and judges how it ended.

    qemu-runner ELF [OPTION...] [FILE...]         boot ELF with FILEs for the guest to read
    qemu-runner suite ELF ... [-- ELF ...]...     boot each, then print `N passed, N failed`
    qemu-runner inject ELF ... [-- ELF ...]...    interrupt the windows workload at every instruction of the windows
    qemu-runner trace ELF ... [-- ELF ...]...     count the instructions of interrupts, by traces of the same
    qemu-runner tally COMMAND [ARGUMENT...]       run cargo test, then print the sum of its results
    qemu-runner check [--directory DIR] FILE...   say whether FILEs can be given to a guest

    --cpu MODEL          CPU model (q35: QEMU's default, virt: cortex-a72)
    --machine OPTIONS    more of QEMU's options for the machine, such as mte=on
    --memory SIZE        RAM (512M)
    --smp N              number of CPUs (1)
    --nmis MILLISECONDS  send an NMI to all CPUs so often, once it prints (q35)
    --icount             make the guest clock count executed instructions
    --args STRING        arguments for the guest
    --directory DIR      where relative names of FILEs start from
    --timeout SECONDS    time limit of the whole boot (60)
    --suite NAME         the last line must be `N passed, N failed[, N skipped]` without failures
    --expect TEXT        a line printed must contain TEXT (may be repeated)
    --forbid TEXT        no line printed may contain TEXT (may be repeated)
    --must-fail          the guest must report failure: for tests of fatal reports
    --quiet              show nothing unless it fails
    --gdb                wait for a debugger on port 1234, without a time limit
    --dry-run            print QEMU's command line and stop

The machine, q35 or virt, follows from the ELF header. QEMU_X86_64 and QEMU_AARCH64 name other
programs than qemu-system-x86_64 and qemu-system-aarch64. Exit codes: 0 pass, 1 the guest failed,
2 usage or environment.
";

/// One boot: the image and everything said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    pub(crate) image: PathBuf,
    pub(crate) inputs: Inputs,
    pub(crate) cpu: Option<String>,
    pub(crate) machine: Option<String>,
    pub(crate) memory: String,
    pub(crate) cpus: u32,
    pub(crate) icount: bool,
    /// How often the machine's operator sends NMIs.
    pub(crate) nmis: Option<Duration>,
    pub(crate) arguments: String,
    pub(crate) timeout: Duration,
    pub(crate) suite: Option<String>,
    pub(crate) expect: Vec<String>,
    pub(crate) forbid: Vec<String>,
    pub(crate) must_fail: bool,
    pub(crate) quiet: bool,
    pub(crate) gdb: bool,
    pub(crate) dry_run: bool,
}

impl Boot {
    /// A boot of `image` with every option at its default.
    pub(crate) fn of(image: PathBuf) -> Self {
        Self {
            image,
            inputs: Inputs::default(),
            cpu: None,
            machine: None,
            memory: "512M".to_owned(),
            cpus: 1,
            icount: false,
            nmis: None,
            arguments: String::new(),
            timeout: Duration::from_secs(60),
            suite: None,
            expect: Vec::new(),
            forbid: Vec::new(),
            must_fail: false,
            quiet: false,
            gdb: false,
            dry_run: false,
        }
    }

    fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut parser = Parser::from_args(arguments);
        let mut image = None;
        let mut boot = Self::of(PathBuf::new());
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Value(value) if image.is_none() => image = Some(value.into()),
                Arg::Value(value) => boot.inputs.files.push(value.into()),
                Arg::Long("cpu") => boot.cpu = Some(parser.value()?.string()?),
                Arg::Long("machine") => boot.machine = Some(parser.value()?.string()?),
                Arg::Long("memory") => boot.memory = parser.value()?.string()?,
                Arg::Long("smp") => boot.cpus = number(&mut parser, "--smp")?,
                Arg::Long("icount") => boot.icount = true,
                Arg::Long("nmis") => {
                    let milliseconds = number(&mut parser, "--nmis")?;
                    boot.nmis = Some(Duration::from_millis(milliseconds.into()));
                }
                Arg::Long("args") => boot.arguments = parser.value()?.string()?,
                Arg::Long("directory") => boot.inputs.directory = Some(parser.value()?.into()),
                Arg::Long("timeout") => boot.timeout = Duration::from_secs(number(&mut parser, "--timeout")?.into()),
                Arg::Long("suite") => boot.suite = Some(parser.value()?.string()?),
                Arg::Long("expect") => boot.expect.push(text(&mut parser, "--expect")?),
                Arg::Long("forbid") => boot.forbid.push(text(&mut parser, "--forbid")?),
                Arg::Long("must-fail") => boot.must_fail = true,
                Arg::Long("quiet") => boot.quiet = true,
                Arg::Long("gdb") => boot.gdb = true,
                Arg::Long("dry-run") => boot.dry_run = true,
                other => return Err(other.unexpected().into()),
            }
        }
        boot.image = image.ok_or_else(|| Error::new("no image to boot was named (--help shows how)"))?;
        if boot.icount && boot.cpus > 1 {
            return Err(Error::new("--icount counts the instructions of one CPU: it doesn't go with --smp"));
        }
        if boot.must_fail && boot.suite.is_some() {
            return Err(Error::new("--must-fail doesn't go with --suite: a failed suite is no pass"));
        }
        Ok(boot)
    }

    /// The debugger's user sets the pace.
    pub(crate) fn time_limit(&self) -> Option<Duration> {
        (!self.gdb).then_some(self.timeout)
    }
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Help,
    Boot(Box<Boot>),
    Suite(Vec<Boot>),
    Inject(Vec<Boot>),
    Trace(Vec<Boot>),
    Tally(Vec<OsString>),
    Check(Inputs),
}

impl Task {
    pub(crate) fn from_command_line(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut arguments: Vec<_> = arguments.into_iter().collect();
        let before_separator = arguments.iter().take_while(|argument| *argument != "--");
        let first = arguments.first().and_then(|first| first.to_str());
        if first != Some("tally") && before_separator.into_iter().any(|argument| argument == "--help") {
            return Ok(Self::Help);
        }
        match first {
            Some("-h") => Ok(Self::Help),
            Some("suite") => boots(&arguments[1..]).map(Self::Suite),
            Some("inject") => driven(&arguments[1..]).map(Self::Inject),
            Some("trace") => driven(&arguments[1..]).map(Self::Trace),
            Some("tally") if arguments.len() < 2 => Err(Error::new("tally needs a command to run")),
            Some("tally") => Ok(Self::Tally(arguments.split_off(1))),
            Some("check") => inputs(arguments.split_off(1)).map(Self::Check),
            _ => Boot::parse(arguments).map(Box::new).map(Self::Boot),
        }
    }
}

fn boots(arguments: &[OsString]) -> Result<Vec<Boot>, Error> {
    arguments.split(|argument| argument == "--").map(|boot| Boot::parse(boot.to_vec())).collect()
}

/// Boots under a debugger of the runner's own.
fn driven(arguments: &[OsString]) -> Result<Vec<Boot>, Error> {
    let boots = boots(arguments)?;
    if boots.iter().any(|boot| boot.gdb || boot.dry_run || boot.icount || boot.nmis.is_some()) {
        return Err(Error::new(
            "--gdb, --dry-run, --icount and --nmis don't go with inject and trace, which drive the guest",
        ));
    }
    Ok(boots)
}

fn inputs(arguments: Vec<OsString>) -> Result<Inputs, Error> {
    let mut parser = Parser::from_args(arguments);
    let mut inputs = Inputs::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(file) => inputs.files.push(file.into()),
            Arg::Long("directory") => inputs.directory = Some(parser.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(inputs)
}

/// A count that makes sense: at least 1.
fn number(parser: &mut Parser, option: &str) -> Result<u32, Error> {
    let value = parser.value()?.string()?;
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(Error::new(format!("{option} takes a whole number above 0, not '{value}'"))),
    }
}

/// A text to look for; every line contains the empty one.
fn text(parser: &mut Parser, option: &str) -> Result<String, Error> {
    let text = parser.value()?.string()?;
    if text.is_empty() { Err(Error::new(format!("{option} takes a text that is not empty"))) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(words: &[&str]) -> Result<Task, Error> {
        Task::from_command_line(words.iter().map(OsString::from))
    }

    #[test]
    fn options_may_stand_anywhere_after_the_image() {
        let Ok(Task::Boot(boot)) = task(&["k", "a.png", "--cpu", "max", "--timeout=5", "--", "--b"]) else {
            panic!("this is a boot");
        };
        assert_eq!(boot.image, PathBuf::from("k"));
        assert_eq!(boot.inputs.files, [PathBuf::from("a.png"), PathBuf::from("--b")]);
        assert_eq!(boot.cpu.as_deref(), Some("max"));
        assert_eq!(boot.time_limit(), Some(Duration::from_secs(5)));
    }

    #[test]
    fn the_defaults_are_those_of_the_help() {
        let Ok(Task::Boot(boot)) = task(&["k"]) else { panic!("this is a boot") };
        assert_eq!(*boot, Boot::of("k".into()));
        assert_eq!((boot.memory.as_str(), boot.cpus, boot.timeout.as_secs()), ("512M", 1, 60));
    }

    #[test]
    fn a_debugger_takes_the_time_it_needs() {
        let Ok(Task::Boot(boot)) = task(&["k", "--gdb", "--timeout", "1"]) else { panic!("this is a boot") };
        assert_eq!(boot.time_limit(), None);
    }

    #[test]
    fn a_suite_is_a_list_of_boots() {
        let Ok(Task::Suite(boots)) = task(&["suite", "a", "--suite", "x", "--", "b", "--expect", "hi"]) else {
            panic!("this is a suite");
        };
        assert_eq!(boots.len(), 2);
        assert_eq!(boots[0].suite.as_deref(), Some("x"));
        assert_eq!(boots[1].expect, ["hi"]);
    }

    #[test]
    fn driven_boots_are_lists_too() {
        let Ok(Task::Inject(boots)) = task(&["inject", "a", "--machine", "mte=on", "--", "a"]) else {
            panic!("this is an injection");
        };
        assert_eq!((boots.len(), boots[0].machine.as_deref()), (2, Some("mte=on")));
        assert!(matches!(task(&["trace", "a"]), Ok(Task::Trace(boots)) if boots.len() == 1));
    }

    #[test]
    fn wrong_usage_is_refused() {
        for words in [
            &[][..],
            &["suite"],
            &["suite", "a", "--"],
            &["tally"],
            &["k", "--cpu"],
            &["k", "--smp", "0"],
            &["k", "--timeout", "soon"],
            &["k", "--expect", ""],
            &["k", "--icount", "--smp", "2"],
            &["k", "--must-fail", "--suite", "x"],
            &["k", "--unknown"],
            &["k", "-q"],
            &["check", "--cpu", "max"],
            &["inject"],
            &["inject", "k", "--gdb"],
            &["trace", "k", "--", "k", "--icount"],
        ] {
            assert!(task(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn help_is_help_unless_it_is_for_another_command() {
        assert_eq!(task(&["--help"]), Ok(Task::Help));
        assert_eq!(task(&["k", "--help"]), Ok(Task::Help));
        assert_eq!(task(&["tally", "cargo", "--help"]), Ok(Task::Tally(vec!["cargo".into(), "--help".into()])));
    }
}
