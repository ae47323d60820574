//! The host has patterns wherever it can, and a sandbox looks for them wherever it can: in all registers where it begins and
//! where it goes on, in everything that its instructions can read, and in its own memory.

use alloc::vec;
use alloc::vec::Vec;

use sandbox_mode::{Config, In, Out, PAGE_SIZE, Progress, Val, VirtAddr};

use crate::host::raise_at_entry;
use crate::kernel::Line;
use crate::machine::{self, PATTERN};
use crate::probe::{code_of, load_word, run_with, works};
use crate::state::{is_harmless, with_patterns};
use crate::suite::{Sandbox, Suite, cases};
use crate::verdict::{Outcome, skip};

cases! {
    registers_hold_nothing_of_the_hosts_at_the_first_instruction,
    registers_hold_nothing_of_the_hosts_in_a_function,
    nothing_that_can_be_read_is_the_hosts,
    the_stack_holds_nothing_of_the_hosts,
    buffers_hold_nothing_of_the_hosts,
}

/// Where addresses begin that only kernels have, and what is small and negative rather than an address.
const KERNEL_HALF: u64 = 0xffff_0000_0000_0000;
const SMALL_NEGATIVE: u64 = 0xffff_ffff_ffff_f000;
/// All patterns of the suite's have these bits in common.
const PATTERN_SHIFT: u32 = 48;

/// A pattern of the host's, or an address of the kernel's that the sandbox does not need.
fn is_of_the_hosts(suite: &Suite, value: u64) -> bool {
    let pattern = value >> PATTERN_SHIFT == PATTERN >> PATTERN_SHIFT;
    let address = (KERNEL_HALF..SMALL_NEGATIVE).contains(&value);
    pattern || address && !is_harmless(suite, value)
}

/// Runs `work` with patterns everywhere: in the general registers, and in all others that a host may use.
fn with_patterns_everywhere(suite: &Suite, work: &mut dyn FnMut() -> Outcome) -> Outcome {
    suite.with_unusual_state(&mut || {
        let mut outcome = Ok(());
        let changed = with_patterns(&mut || outcome = work());
        expect_eq!(changed, 0, "registers of the host's that changed");
        outcome
    })
}

fn registers_hold_nothing_of_the_hosts_at_the_first_instruction(suite: &Suite) -> Outcome {
    suite.kernel.raise(Line::Ordinary).or_else(skip)?;
    let mut sandbox = suite.sandbox()?;
    for _ in 0..3 {
        // What is pending at entry is taken before the first instruction: what the gate saves then is what was there.
        with_patterns_everywhere(suite, &mut || {
            raise_at_entry(Line::Ordinary, 1);
            expect!(matches!(sandbox.start(works_alone, ())?.step()?, Progress::Suspended(_)));
            Ok(())
        })?;
        for (name, value) in machine::visible(sandbox.registers()) {
            expect!(is_harmless(suite, value), "{name} holds {value:#x}");
        }
        works(&mut sandbox)?;
    }
    Ok(())
}

fn works_alone() -> u64 {
    7
}

fn registers_hold_nothing_of_the_hosts_in_a_function(suite: &Suite) -> Outcome {
    let mut sandbox = suite.sandbox()?;
    with_patterns_everywhere(suite, &mut || {
        let dump = sandbox.call(dump_registers, ())?;
        for (number, value) in dump.general.into_iter().enumerate() {
            expect!(is_harmless(suite, value), "register {number} holds {value:#x}");
        }
        Ok(())
    })
}

fn dump_registers() -> machine::Dump {
    machine::dump()
}

fn nothing_that_can_be_read_is_the_hosts(suite: &Suite) -> Outcome {
    let reads = machine::reads();
    let mut sandbox = suite.sandbox()?;
    with_patterns_everywhere(suite, &mut || {
        let mut readable = 0;
        for &(name, code) in &reads {
            let found: Result<u64, _> = sandbox.call(run_with, (Val(code), Val(0u64)));
            if let Ok(value) = found {
                readable += 1;
                expect!(!is_of_the_hosts(suite, value), "{name}, read at {code:#x}, holds {value:#x}");
            }
        }
        suite.note(format_args!("{readable} of {} can be read", reads.len()));
        expect!(readable > 0, "not even the flags can be read");
        works(&mut sandbox)
    })
}

/// Copies the words from `start` on.
fn copy_words(start: u64, into: &mut [u64]) {
    for (index, word) in into.iter_mut().enumerate() {
        *word = load_word(start + (index * size_of::<u64>()) as u64);
    }
}

const WORDS: usize = PAGE_SIZE / size_of::<u64>();

/// Looks at words that a sandbox found.
fn look(suite: &Suite, what: &str, words: &[u64]) -> Outcome {
    for (index, &word) in words.iter().enumerate() {
        expect!(!is_of_the_hosts(suite, word), "{what}, word {index}: {word:#x}");
    }
    Ok(())
}

/// Things that happen to a sandbox.
fn live(sandbox: &mut Sandbox<'_>) -> Outcome {
    works(sandbox)?;
    raise_at_entry(Line::Ordinary, 2);
    works(sandbox)?;
    for poisoner in machine::poisoners().iter().filter(|poisoner| poisoner.end != machine::End::Spins) {
        let _: Result<u64, _> = sandbox.call(run_with, (Val(code_of(poisoner.code)), Val(0u64)));
    }
    works(sandbox)
}

fn the_stack_holds_nothing_of_the_hosts(suite: &Suite) -> Outcome {
    const PAGES: usize = 4;
    let mut sandbox = suite.sandbox_with(Config::default().stack_size(PAGES * PAGE_SIZE))?;
    let mut words = vec![0; WORDS];
    with_patterns_everywhere(suite, &mut || live(&mut sandbox))?;
    // A guard page, then the stack.
    let stack = suite.window().start().start().0 + PAGE_SIZE as u64;
    let mut used = 0;
    for page in 0..PAGES {
        let start = stack + (page * PAGE_SIZE) as u64;
        with_patterns_everywhere(suite, &mut || Ok(sandbox.call(copy_words, (Val(start), Out(&mut words[..])))?))?;
        look(suite, "the stack", &words)?;
        used += words.iter().filter(|&&word| word != 0).count();
    }
    expect!(used > 0, "the stack is elsewhere");
    Ok(())
}

/// Copies the page that an input is in, and says where the input is.
fn copy_page(input: &[u8], into: &mut [u64]) -> u64 {
    let address = VirtAddr::of(input.as_ptr());
    copy_words(address.page().start().0, into);
    address.0
}

/// The same for an output.
fn copy_page_of_output(output: &mut [u8], into: &mut [u64]) -> u64 {
    copy_page(output, into)
}

fn buffers_hold_nothing_of_the_hosts(suite: &Suite) -> Outcome {
    let input = [0x11; 24];
    let mut output = [0; 24];
    for config in [Config::default(), Config::default().placement(sandbox_mode::Placement::Start)] {
        let mut sandbox = suite.sandbox_with(config)?;
        let (mut of_input, mut of_output) = (vec![0; WORDS], vec![0; WORDS]);
        with_patterns_everywhere(suite, &mut || {
            live(&mut sandbox)?;
            sandbox.call(copy_page, (In(&input[..]), Out(&mut of_input[..])))?;
            sandbox.call(copy_page_of_output, (Out(&mut output[..]), Out(&mut of_output[..])))?;
            Ok(())
        })?;
        look(suite, "the page of an input", &of_input)?;
        look(suite, "the page of an output", &of_output)?;
        let given: Vec<u8> = of_input.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        expect!(given.windows(input.len()).any(|bytes| bytes == input), "the input is elsewhere");
    }
    Ok(())
}
