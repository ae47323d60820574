//! QEMU's command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::machine::Machine;
use crate::options::Boot;
use crate::terminal::{Terminal, guest_arguments};

/// The arguments that boot `boot` on `machine`, with `files` for the guest.
pub(crate) fn arguments(boot: &Boot, machine: Machine, files: &[PathBuf], terminal: Option<Terminal>) -> Vec<OsString> {
    let mut line: Vec<OsString> = machine.arguments().iter().map(OsString::from).collect();
    let mut add = |words: &[&OsStr]| line.extend(words.iter().map(OsString::from));

    if let Some(options) = &boot.machine {
        add(&["-machine".as_ref(), options.as_ref()]);
    }
    if let Some(model) = boot.cpu.as_deref().or(machine.default_cpu()) {
        add(&["-cpu".as_ref(), model.as_ref()]);
    }
    add(&["-m".as_ref(), boot.memory.as_ref()]);
    if boot.cpus > 1 {
        add(&["-smp".as_ref(), boot.cpus.to_string().as_ref()]);
    }
    if boot.icount {
        add(&["-icount".as_ref(), "shift=0".as_ref()]);
    }
    if boot.gdb {
        add(&["-gdb".as_ref(), "tcp:127.0.0.1:1234".as_ref(), "-S".as_ref()]);
    }
    // No network card: nothing uses one, and its boot ROM is in a package that may be absent.
    add(["-display", "none", "-serial", "stdio", "-monitor", "none", "-nic", "none"].map(OsStr::new).as_slice());
    add(&["-kernel".as_ref(), boot.image.as_ref()]);

    let mut pass_in = |name: &str, kind: &str, value: &OsStr| {
        let mut item = OsString::from(format!("name=opt/sandbox/{name},{kind}="));
        item.push(escape(value));
        add(&["-fw_cfg".as_ref(), item.as_ref()]);
    };
    pass_in("args", "string", guest_arguments(terminal, &boot.arguments).as_ref());
    for (index, path) in files.iter().enumerate() {
        pass_in(&format!("file{index}"), "file", path.as_ref());
        pass_in(&format!("name{index}"), "string", base_name(path).as_ref());
    }
    line
}

/// The guest takes names as UTF-8 only.
fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// QEMU takes a comma for the end of a value unless it is doubled.
fn escape(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        escaped.push(*byte);
        if *byte == b',' {
            escaped.push(b',');
        }
    }
    OsString::from_vec(escaped)
}

/// The command line as a shell takes it.
pub(crate) fn quoted(program: &OsStr, arguments: &[OsString]) -> String {
    let quote = |word: &OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    std::iter::once(program).chain(arguments.iter().map(OsString::as_os_str)).map(quote).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut Boot), machine: Machine, files: &[&str]) -> String {
        let mut boot = Boot::of("kernel".into());
        change(&mut boot);
        let files: Vec<_> = files.iter().map(PathBuf::from).collect();
        quoted("qemu".as_ref(), &arguments(&boot, machine, &files, None))
    }

    #[test]
    fn q35_boots_its_default_cpu() {
        assert_eq!(
            line(|_| (), Machine::Q35, &[]),
            "qemu -machine q35 -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=0x04 -m 512M \
             -display none -serial stdio -monitor none -nic none -kernel kernel \
             -fw_cfg name=opt/sandbox/args,string=color=0"
        );
    }

    #[test]
    fn virt_boots_a_cortex_a72() {
        assert_eq!(
            line(|_| (), Machine::Virt, &[]),
            "qemu -machine virt,gic-version=3 -no-reboot -semihosting-config \
             enable=on,target=native -cpu cortex-a72 -m 512M -display none \
             -serial stdio -monitor none -nic none -kernel kernel -fw_cfg name=opt/sandbox/args,string=color=0"
        );
    }

    #[test]
    fn the_cpu_asked_for_is_the_one_used() {
        for machine in [Machine::Q35, Machine::Virt] {
            let line = line(|boot| boot.cpu = Some("max".into()), machine, &[]);
            assert_eq!(line.matches("-cpu").count(), 1);
            assert!(line.contains("-cpu max"));
        }
    }

    #[test]
    fn each_option_has_its_words() {
        let icount = line(|boot| boot.icount = true, Machine::Q35, &[]);
        assert!(icount.contains(" -icount shift=0 "));
        let tagged = line(|boot| boot.machine = Some("mte=on".into()), Machine::Virt, &[]);
        assert!(tagged.contains(" -machine mte=on "));
        let several = line(|boot| boot.cpus = 4, Machine::Q35, &[]);
        assert!(several.contains(" -smp 4 "));
        let large = line(|boot| boot.memory = "2G".into(), Machine::Q35, &[]);
        assert!(large.contains(" -m 2G "));
        let debugged = line(|boot| boot.gdb = true, Machine::Virt, &[]);
        assert!(debugged.contains(" -gdb tcp:127.0.0.1:1234 -S "));
    }

    #[test]
    fn files_go_in_with_their_names() {
        let line = line(|_| (), Machine::Virt, &["a/b.png", "/c.der"]);
        assert!(line.ends_with(
            "-fw_cfg name=opt/sandbox/file0,file=a/b.png \
             -fw_cfg name=opt/sandbox/name0,string=b.png \
             -fw_cfg name=opt/sandbox/file1,file=/c.der -fw_cfg name=opt/sandbox/name1,string=c.der"
        ));
    }

    #[test]
    fn commas_and_quotes_arrive_whole() {
        let line = line(|boot| boot.arguments = "a,b c'd".into(), Machine::Q35, &["x,,y"]);
        assert!(line.contains(r"'name=opt/sandbox/args,string=color=0 a,,b c'\''d'"));
        assert!(line.contains("name=opt/sandbox/file0,file=x,,,,y"));
        assert!(line.contains("name=opt/sandbox/name0,string=x,,,,y"));
    }
}
