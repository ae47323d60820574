//! What runs in the sandboxes. All of it comes to an end, with a result that says so, even if nobody does what it waits for.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::words::{INSIDE, MEETING, STOP};

/// Rounds after which a sandbox has waited long enough: many seconds, and less than the whole boot may take.
const PATIENCE: u64 = 1 << 26;
/// The same in steps of the computation, which are quicker.
const MOST_STEPS: u64 = 1 << 32;

/// The result of a sandbox that has waited for too long.
pub(crate) const GAVE_UP: u64 = u64::MAX;

/// One step of a computation whose result depends on every step.
pub(crate) fn advance(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407).rotate_left(17)
}

/// So many steps.
pub(crate) fn chain(seed: u64, steps: u64) -> u64 {
    (0..steps).fold(seed, |state, _| advance(state))
}

/// A word of the page at `page`.
fn word(page: u64, index: usize) -> &'static AtomicU64 {
    let pointer: *mut u64 = core::ptr::with_exposed_provenance_mut(page as usize + index * size_of::<u64>());
    // SAFETY: the page was granted for as long as the sandbox lives; if not, the access ends the sandbox's run.
    unsafe { AtomicU64::from_ptr(pointer) }
}

/// Reads a word.
pub(crate) fn load(page: u64, index: u64) -> u64 {
    word(page, index as usize).load(Ordering::SeqCst)
}

/// Writes a word.
pub(crate) fn store(page: u64, index: u64, value: u64) {
    word(page, index as usize).store(value, Ordering::SeqCst);
}

/// Waits for all `parties` to be here; returns how many came before.
pub(crate) fn meet(page: u64, parties: u64) -> u64 {
    let here = word(page, MEETING);
    let before = here.fetch_add(1, Ordering::SeqCst);
    for _ in 0..PATIENCE {
        if here.load(Ordering::SeqCst) >= parties {
            return before;
        }
        spin_loop();
    }
    GAVE_UP
}

/// Takes its turn, number `me` of `parties`, `rounds` times; one step of the computation in each.
pub(crate) fn take_turns(page: u64, me: u64, parties: u64, rounds: u64, seed: u64) -> u64 {
    let turn = word(page, MEETING);
    let mut state = seed;
    let mut left = PATIENCE;
    for round in 0..rounds {
        while turn.load(Ordering::SeqCst) != round * parties + me {
            left -= 1;
            if left == 0 {
                return GAVE_UP;
            }
            spin_loop();
        }
        state = advance(state);
        turn.fetch_add(1, Ordering::SeqCst);
    }
    state
}

/// Computes until it is told to stop. `steps` counts.
pub(crate) fn compute(page: u64, seed: u64, steps: &mut u64) -> u64 {
    let stop = word(page, STOP);
    word(page, INSIDE).fetch_add(1, Ordering::SeqCst);
    let mut state = seed;
    while stop.load(Ordering::SeqCst) == 0 {
        state = advance(state);
        *steps += 1;
        if *steps == MOST_STEPS {
            return GAVE_UP;
        }
    }
    state
}

/// Does not end until it is ended.
pub(crate) fn resist(page: u64) {
    word(page, INSIDE).fetch_add(1, Ordering::SeqCst);
    for _ in 0..PATIENCE {
        spin_loop();
    }
}
