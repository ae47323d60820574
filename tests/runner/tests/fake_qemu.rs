//! The runner against programs that stand in for QEMU and end in every way QEMU could.
//!
//! QEMU_X86_64 names `fake-qemu` beside this file, which runs the shell script that the test wrote.
//! (A test that wrote a program and started it at once would now and then find it busy.)

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A folder with a fake QEMU and an image whose header says x86-64.
struct Fake {
    folder: TempDir,
}

/// What the runner printed and returned.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Fake {
    /// A QEMU that does what `script` says; `$ARGUMENTS` names the file to leave its arguments in.
    fn new(script: &str) -> Self {
        let fake = Self { folder: tempfile::tempdir().expect("a folder") };
        let record = fake.path("arguments");
        let script = format!(
            "ARGUMENTS={}
{script}
",
            record.display()
        );
        fs::write(fake.path("script"), script).expect("a script");
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[16] = 2;
        header[18] = 62;
        fs::write(fake.path("kernel"), header).expect("an image");
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qemu-runner"));
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("QEMU_X86_64", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake-qemu"))
            .env("FAKE_QEMU", self.path("script"));
        command
    }

    fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).output().expect("the runner starts"))
    }
}

impl Ran {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The guest failed, and one line says why.
    fn failed_because(&self, reason: &str) {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.contains(reason), "{}", self.stderr);
    }

    /// Nothing was booted, and one line says why.
    fn refused_because(&self, reason: &str) {
        assert_eq!(self.code, Some(2), "{}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        assert!(self.stderr.contains(reason), "{}", self.stderr);
        assert_eq!(self.stdout, "");
    }
}

#[test]
fn a_pass_shows_the_output_and_nothing_else() {
    let ran = Fake::new(r"printf 'hello\r\nworld'; exit 33").run(&["kernel"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "hello\nworld", ""));
}

#[test]
fn a_guest_that_says_fail_fails() {
    let ran = Fake::new("echo bad; exit 35").run(&["kernel"]);
    ran.failed_because("kernel on q35, default CPU: the guest reported failure");
    assert_eq!(ran.stdout, "bad\n");
}

#[test]
fn a_silent_end_is_no_pass() {
    Fake::new("exit 0").run(&["kernel"]).failed_because("triple fault");
}

#[test]
fn a_hang_is_ended_in_time() {
    let fake = Fake::new("echo started; exec sleep 1000");
    let start = Instant::now();
    let ran = fake.run(&["kernel", "--timeout", "1"]);
    assert!(start.elapsed() < Duration::from_secs(10));
    ran.failed_because("it hung: no end within 1 s");
    assert_eq!(ran.stdout, "started\n");
}

#[test]
fn a_flood_is_a_hang_too() {
    let fake = Fake::new("exec yes flood");
    let start = Instant::now();
    fake.run(&["kernel", "--timeout", "1", "--quiet", "--forbid", "other"]);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_pipe_held_open_by_another_process_is_no_hang() {
    // The sleeper inherits the pipes and outlives the script.
    let fake = Fake::new(r#"sleep 30 & echo $! >"$ARGUMENTS"; echo 'done'; exit 33"#);
    let start = Instant::now();
    let ran = fake.run(&["kernel", "--expect", "done"]);
    let sleeper = fs::read_to_string(fake.path("arguments")).expect("the sleeper's number");
    let _ = Command::new("kill").arg(sleeper.trim()).status();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn a_killed_qemu_is_reported() {
    Fake::new("kill -9 $$").run(&["kernel"]).failed_because("signal 9");
}

#[test]
fn qemus_own_complaint_is_the_reason() {
    let ran = Fake::new("echo 'qemu: unknown CPU' >&2; exit 1").run(&["kernel"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.ends_with("QEMU stopped with status 1: qemu: unknown CPU\n"), "{}", ran.stderr);
}

#[test]
fn a_suite_needs_its_closing_line() {
    let words = ["kernel", "--suite", "conformance"];
    let ran = Fake::new("echo '3 passed, 0 failed'; exit 33").run(&words);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "3 passed, 0 failed\n"));
    Fake::new("echo '3 passed, 0 failed'; echo bye; exit 33")
        .run(&words)
        .failed_because("conformance on q35, default CPU: its last line is 'bye'");
    Fake::new("exit 33").run(&words).failed_because("its last line is ''");
    Fake::new("echo '0 passed, 0 failed'; exit 33").run(&words).failed_because("no case");
    Fake::new("echo '3 passed, 0 failed'; exit 0").run(&words).failed_because("triple fault");
}

#[test]
fn expected_and_forbidden_texts_are_looked_for() {
    let fake = Fake::new("echo one; echo two; exit 33");
    assert_eq!(fake.run(&["kernel", "--expect", "one", "--expect", "two"]).code, Some(0));
    fake.run(&["kernel", "--expect", "three"]).failed_because("did not print 'three'");
    fake.run(&["kernel", "--forbid", "two"]).failed_because("it printed 'two'");
}

#[test]
fn quiet_shows_the_last_lines_of_a_failure_only() {
    let count = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i + 1)); done;";
    let passed = Fake::new(&format!("{count} exit 33")).run(&["kernel", "--quiet"]);
    assert_eq!((passed.code, passed.stdout.as_str(), passed.stderr.as_str()), (Some(0), "", ""));
    let failed = Fake::new(&format!("{count} exit 35")).run(&["kernel", "--quiet"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), ""));
    let lines: Vec<_> = failed.stderr.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[39]), (41, "line 60", "line 99"));
    assert!(lines[40].contains("the guest reported failure"));
}

#[test]
fn quiet_keeps_the_closing_line() {
    let ran = Fake::new("echo case; echo '1 passed, 0 failed'; exit 33").run(&["kernel", "--quiet", "--suite", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "1 passed, 0 failed\n"));
}

#[test]
fn files_and_arguments_reach_qemu() {
    let fake = Fake::new(r#"printf '%s\n' "$@" >"$ARGUMENTS"; exit 33"#);
    fs::write(fake.path("a, b.png"), b"x").expect("a file");
    assert_eq!(fake.run(&["kernel", "--args", "only=a,b", "a, b.png"]).code, Some(0));
    let arguments = fs::read_to_string(fake.path("arguments")).expect("the arguments");
    for expected in [
        "name=opt/sandbox/args,string=color=0 only=a,,b",
        "name=opt/sandbox/file0,file=a,, b.png",
        "name=opt/sandbox/name0,string=a,, b.png",
    ] {
        assert!(arguments.lines().any(|line| line == expected), "{arguments}");
    }
}

#[test]
fn what_cannot_be_booted_is_refused_before_qemu_starts() {
    let fake = Fake::new("echo booted; exit 33");
    fs::write(fake.path("empty"), b"").expect("a file");
    fs::write(fake.path("text"), b"not a kernel at all, but long enough\n").expect("a file");
    fake.run(&["absent"]).refused_because("cannot read the image absent");
    fake.run(&["."]).refused_because("cannot read the image .");
    fake.run(&["text"]).refused_because("text: it is not an ELF file");
    fake.run(&["kernel", "absent.png"]).refused_because("absent.png: no such file");
    fake.run(&["kernel", "."]).refused_because(".: is a folder");
    fake.run(&["kernel", "empty"]).refused_because("empty: is empty");
    fake.run(&["kernel", "--unknown"]).refused_because("--unknown");
    fake.run(&[]).refused_because("no image");
}

#[test]
fn a_missing_qemu_is_named_with_its_package() {
    let mut command = Fake::new("").command(&[]);
    let fake = Fake::new("");
    let output = command
        .arg(fake.path("kernel"))
        .env("QEMU_X86_64", "/nonexistent/qemu")
        .current_dir("/")
        .output()
        .expect("the runner starts");
    Ran::of(&output).refused_because("./bootstrap");
    Ran::of(&output).refused_because("qemu-system-x86");
}

#[test]
fn a_dry_run_prints_the_command_line_only() {
    let ran = Fake::new("echo booted; exit 33").run(&["kernel", "--dry-run", "--cpu", "max"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("/fake-qemu -machine q35 ") && ran.stdout.contains(" -cpu max "));
    assert_eq!(ran.stdout.lines().count(), 1);
}

#[test]
fn a_suite_of_boots_goes_on_after_a_failure_and_sums() {
    let script = r#"case "$*" in
        *good*) echo '5 passed, 0 failed, 1 skipped'; exit 33 ;;
        *hello*) echo hello; exit 33 ;;
        *) exit 0 ;;
    esac"#;
    let fake = Fake::new(script);
    let good = ["kernel", "--suite", "conformance", "--args", "good"];
    let hello = ["kernel", "--args", "hello", "--expect", "hello"];
    let fault = ["kernel"];
    let words = |boots: &[&[&'static str]]| [&["suite"][..], &boots.join(&"--")].concat();

    let ran = fake.run(&words(&[&good, &hello, &good]));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().last(), Some("11 passed, 0 failed, 2 skipped"));

    let ran = fake.run(&words(&[&fault, &good]));
    ran.failed_because("triple fault");
    assert_eq!(ran.stdout.lines().last(), Some("5 passed, 1 failed, 1 skipped"));
}

#[test]
fn a_tally_sums_what_cargo_reports() {
    let tally = |script: &str| Fake::new("").run(&["tally", "sh", "-c", script]);
    let two = "echo 'test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out';";
    let ran = tally(&format!("{two} {two}"));
    assert_eq!((ran.code, ran.stdout.lines().last()), (Some(0), Some("4 passed, 0 failed, 2 skipped")));
    let broken = tally(&format!("{two} exit 101"));
    assert_eq!(broken.code, Some(1));
    assert_eq!(broken.stdout.lines().last(), Some("2 passed, 1 failed, 1 skipped"));
    let nothing = tally("true");
    assert_eq!((nothing.code, nothing.stdout.as_str()), (Some(1), "0 passed, 0 failed\n"));
}

#[cfg(target_os = "linux")]
#[test]
fn qemu_goes_with_a_runner_that_is_killed() {
    let fake = Fake::new(r#"echo $$ >"$ARGUMENTS.new"; mv "$ARGUMENTS.new" "$ARGUMENTS"; exec sleep 1000"#);
    let mut runner = fake.command(&["kernel"]).spawn().expect("the runner starts");
    let wait_for = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for(&|| fake.path("arguments").exists());
    let number = fs::read_to_string(fake.path("arguments")).expect("QEMU's number");
    runner.kill().and_then(|()| runner.wait()).expect("the runner ends");
    let process = PathBuf::from("/proc").join(number.trim()).join("stat");
    // Gone, or dead and not yet collected by whoever inherits it.
    wait_for(&|| fs::read_to_string(&process).map_or(true, |stat| stat.contains(") Z ")));
}
