//! Whether a boot passed: from its ending and its output to pass or a reason, and nothing else.

use crate::ending::{Ending, FAIL, PASS};
use crate::options::Boot;
use crate::transcript::Transcript;

/// Judges a boot that has ended by what was asked of it. The error says in one line what went wrong.
pub(crate) fn judge(ending: Ending, transcript: &Transcript, boot: &Boot) -> Result<(), String> {
    match ending {
        Ending::TimedOut(limit) => {
            return Err(format!("it hung: no end within {} s", limit.as_secs()));
        }
        Ending::Signal(signal) => return Err(format!("QEMU was ended by signal {signal}")),
        Ending::Status(PASS) if boot.must_fail => return Err("the guest reported pass but was to fail".to_owned()),
        Ending::Status(FAIL) if boot.must_fail => {}
        Ending::Status(PASS) => {}
        Ending::Status(FAIL) => {
            return Err(match transcript.summary() {
                Some(summary) => format!("the guest reported failure: {summary}"),
                None => "the guest reported failure".to_owned(),
            });
        }
        Ending::Status(status) => {
            return Err(match transcript.complaint() {
                Some(complaint) => format!("QEMU stopped with status {status}: {complaint}"),
                None if status == 0 => {
                    "it stopped without a verdict (a triple fault, a reset or a power-off)".to_owned()
                }
                None => format!("it stopped with status {status}, which is neither {PASS} (pass) nor {FAIL} (fail)"),
            });
        }
    }
    if let Some(text) = transcript.forbidden() {
        return Err(format!("it printed '{text}', which it must not"));
    }
    if let Some(text) = transcript.missing() {
        return Err(format!("it did not print '{text}'"));
    }
    if boot.suite.is_none() {
        return Ok(());
    }
    match transcript.summary() {
        Some(summary) if summary.is_pass() => Ok(()),
        Some(summary) if summary.failed > 0 => Err(format!("it says pass although cases failed: {summary}")),
        Some(summary) => Err(format!("it ran no case: {summary}")),
        None => Err(format!("its last line is '{}', not 'N passed, N failed'", transcript.last_line())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn transcript(boot: &Boot, output: &str, complaint: &str) -> Transcript {
        let mut transcript = Transcript::of(boot);
        transcript.guest_says(output.as_bytes());
        transcript.qemu_says(complaint.as_bytes());
        transcript.finish();
        transcript
    }

    fn judged(ending: Ending, output: &str) -> Result<(), String> {
        let boot = Boot::of("k".into());
        judge(ending, &transcript(&boot, output, ""), &boot)
    }

    fn suite(output: &str) -> Result<(), String> {
        let boot = Boot { suite: Some("conformance".into()), ..Boot::of("k".into()) };
        judge(Ending::Status(PASS), &transcript(&boot, output, ""), &boot)
    }

    fn reason(verdict: Result<(), String>) -> String {
        verdict.expect_err("this boot must not pass")
    }

    #[test]
    fn only_the_status_agreed_on_passes() {
        assert_eq!(judged(Ending::Status(33), ""), Ok(()));
        for status in (0..256).filter(|status| *status != 33) {
            assert!(judged(Ending::Status(status), "9 passed, 0 failed\n").is_err(), "{status}");
        }
        assert!(reason(judged(Ending::Signal(11), "")).contains("signal 11"));
        assert!(reason(judged(Ending::TimedOut(Duration::from_secs(7)), "")).contains("within 7 s"));
    }

    #[test]
    fn each_way_to_fail_has_its_words() {
        assert!(reason(judged(Ending::Status(0), "")).contains("triple fault"));
        assert_eq!(reason(judged(Ending::Status(35), "")), "the guest reported failure");
        assert!(reason(judged(Ending::Status(35), "1 passed, 2 failed\n")).ends_with("1 passed, 2 failed"));
        assert!(reason(judged(Ending::Status(7), "")).contains("status 7"));
        let boot = Boot::of("k".into());
        let complained = transcript(&boot, "", "qemu: no such CPU\n");
        assert!(reason(judge(Ending::Status(1), &complained, &boot)).ends_with("qemu: no such CPU"));
    }

    #[test]
    fn a_suite_closes_with_a_summary_that_passes() {
        assert_eq!(suite("case a\n3 passed, 0 failed\n"), Ok(()));
        assert_eq!(suite("3 passed, 0 failed, 1 skipped\n\n"), Ok(()));
        assert!(reason(suite("")).contains("last line is ''"));
        assert!(reason(suite("3 passed, 0 failed\nbye\n")).contains("last line is 'bye'"));
        assert!(reason(suite("3 passed, 1 failed\n")).contains("although cases failed"));
        assert!(reason(suite("0 passed, 0 failed, 4 skipped\n")).contains("ran no case"));
    }

    #[test]
    fn texts_asked_for_and_forbidden_count() {
        let mut boot = Boot::of("k".into());
        boot.expect = vec!["hello".into()];
        boot.forbid = vec!["leak".into()];
        let verdict = |output| judge(Ending::Status(PASS), &transcript(&boot, output, ""), &boot);
        assert_eq!(verdict("say hello\n"), Ok(()));
        assert!(reason(verdict("say\n")).contains("did not print 'hello'"));
        assert!(reason(verdict("hello leaks\n")).contains("'leak'"));
    }

    #[test]
    fn a_failure_asked_for_must_be_the_guests_own() {
        let mut boot = Boot::of("k".into());
        boot.must_fail = true;
        boot.expect = vec!["page fault".into()];
        let verdict = |ending, output| judge(ending, &transcript(&boot, output, ""), &boot);
        assert_eq!(verdict(Ending::Status(35), "page fault\n"), Ok(()));
        assert!(reason(verdict(Ending::Status(35), "")).contains("did not print 'page fault'"));
        assert!(reason(verdict(Ending::Status(33), "page fault\n")).contains("was to fail"));
        assert!(verdict(Ending::Status(0), "page fault\n").is_err());
        assert!(verdict(Ending::TimedOut(Duration::from_secs(1)), "page fault\n").is_err());
    }
}
