//! NMIs from outside, through QEMU's monitor: from nobody whom the guest knows, at any moment, on all its CPUs.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How often something is looked for that isn't there yet.
const PAUSE: Duration = Duration::from_millis(5);

/// A monitor that QEMU is to have.
#[derive(Debug)]
pub(crate) struct Monitor {
    socket: PathBuf,
}

impl Monitor {
    /// One whose socket is in `folder`.
    pub(crate) fn in_folder(folder: &Path) -> Monitor {
        Monitor { socket: folder.join("monitor") }
    }

    /// The options of QEMU's for it.
    pub(crate) fn options(&self) -> [OsString; 2] {
        let mut place = OsString::from("unix:");
        place.push(&self.socket);
        place.push(",server=on,wait=off");
        ["-qmp".into(), place]
    }

    /// Sends an NMI each `interval`, from when `begun` is set until `stop` is or QEMU ends; how many.
    pub(crate) fn send_nmis(&self, interval: Duration, begun: &AtomicBool, stop: &AtomicBool) -> u64 {
        while !begun.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
        let mut stream = loop {
            if stop.load(Ordering::Relaxed) {
                return 0;
            }
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(PAUSE),
            }
        };
        // An answer that nobody takes would stop QEMU in the end.
        if let Ok(mut answers) = stream.try_clone() {
            thread::spawn(move || while matches!(answers.read(&mut [0; 4096]), Ok(1..)) {});
        }
        let mut sent = 0;
        let mut say = |command: &str| stream.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes());
        if say("qmp_capabilities").is_err() {
            return sent;
        }
        while !stop.load(Ordering::Relaxed) && say("inject-nmi").is_ok() {
            sent += 1;
            thread::sleep(interval);
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    #[test]
    fn nmis_are_sent_until_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let monitor = Monitor::in_folder(folder.path());
        let listener = UnixListener::bind(&monitor.socket).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| monitor.send_nmis(Duration::from_millis(1), &AtomicBool::new(true), &stop));
            let mut lines = BufReader::new(listener.accept().unwrap().0).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "{\"execute\":\"qmp_capabilities\"}");
            for _ in 0..3 {
                assert_eq!(lines.next().unwrap().unwrap(), "{\"execute\":\"inject-nmi\"}");
            }
            stop.store(true, Ordering::Relaxed);
            assert!(sender.join().unwrap() >= 3);
        });
    }

    #[test]
    fn a_monitor_that_never_comes_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            Monitor::in_folder(folder.path()).send_nmis(PAUSE, &AtomicBool::new(false), &AtomicBool::new(true)),
            0
        );
    }
}
