//! The calls: every way into a sandbox and out of it, each result checked.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use platform_qemu::interrupts;
use sandbox_mode::{CallError, Config, Error, ExitReason, Hal, In, InOut, Out, Sandbox, Val};

use crate::host::{Watched, raise_at_entry};
use crate::machine;

/// What was not as it should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wrong(pub(crate) &'static str);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        platform_qemu::println!("{error}");
        Wrong("the HAL refused")
    }
}

impl From<CallError> for Wrong {
    fn from(error: CallError) -> Self {
        platform_qemu::println!("{error}");
        Wrong("a call did not return")
    }
}

/// `Err` with `what` unless it holds.
pub(crate) fn expect(holds: bool, what: &'static str) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(Wrong(what)) }
}

/// Interrupts of this kernel's own that were handled.
static FORWARDED: AtomicU64 = AtomicU64::new(0);

/// The handler of this kernel's own interrupts.
pub(crate) fn count_forwarded() {
    FORWARDED.fetch_add(1, Ordering::Relaxed);
}

fn forwarded() -> u64 {
    FORWARDED.load(Ordering::Relaxed)
}

/// A function that ends otherwise than by returning, and whether it ended in the right way.
pub(crate) struct Ending {
    pub(crate) what: &'static str,
    pub(crate) function: extern "C" fn(),
    pub(crate) is_right: fn(ExitReason) -> bool,
}

/// The sandboxes' work: the result depends on every byte.
fn mix(number: u64, bytes: &[u8; 64], digest: &mut [u8; 64], sum: &mut u64) -> u64 {
    for (out, byte) in digest.iter_mut().zip(bytes) {
        *out = byte.rotate_left(3) ^ number as u8;
        *sum = sum.wrapping_mul(31).wrapping_add(u64::from(*out));
    }
    number.wrapping_mul(3) ^ *sum
}

/// The calls of one kernel.
pub(crate) struct Calls {
    hal: &'static Hal<Watched>,
    sandbox: Sandbox<'static, Watched>,
    /// One with vector registers.
    vectors: Sandbox<'static, Watched>,
    number: u64,
    tick: bool,
}

impl Calls {
    /// Registers the handlers too. `tick` says that the platform's tick keeps its line.
    pub(crate) fn new(hal: &'static Hal<Watched>, tick: bool) -> Result<Self, Wrong> {
        for line in machine::own_lines(tick) {
            interrupts::register(line, count_forwarded);
        }
        let vectors = hal.sandbox_with(Config::default().vectors(true))?;
        Ok(Calls { hal, sandbox: hal.sandbox()?, vectors, number: 0, tick })
    }

    /// Everything once. `all` says that the runner's lines may be used too.
    pub(crate) fn round(&mut self, all: bool) -> Result<(), Wrong> {
        self.plain()?;
        self.with_vectors()?;
        self.endings()?;
        self.forwarding(all)?;
        self.masked()?;
        self.in_host_states()?;
        self.life()
    }

    /// A call that returns.
    fn plain(&mut self) -> Result<(), Wrong> {
        self.number += 1;
        check_mix(&mut self.sandbox, self.number)
    }

    /// A call with vector registers, and an interrupt in it.
    fn with_vectors(&mut self) -> Result<(), Wrong> {
        self.number += 1;
        check_mix(&mut self.vectors, self.number)?;
        let Some(line) = machine::own_lines(self.tick).next() else {
            return Err(Wrong("this machine has no interrupts"));
        };
        let before = forwarded();
        raise_at_entry(line);
        self.number += 1;
        check_mix(&mut self.vectors, self.number)?;
        expect(forwarded() == before + 1, "an interrupt was not handled once")
    }

    /// Calls that end by a fault or otherwise, and one that returns after each.
    fn endings(&mut self) -> Result<(), Wrong> {
        for ending in machine::endings() {
            // The function is a constant of the list, and a call takes no closure that captures: its address goes in.
            let address = ending.function as *const () as u64;
            match self.sandbox.call(jump, (Val(address),)) {
                Err(CallError::Exit(exit)) if (ending.is_right)(exit.reason) => {}
                other => {
                    platform_qemu::println!("{}: {other:?}", ending.what);
                    return Err(Wrong("a call ended in another way than it should"));
                }
            }
            self.plain()?;
        }
        Ok(())
    }

    /// Calls during which an interrupt arrives, one on each line.
    pub(crate) fn forwarding(&mut self, all: bool) -> Result<(), Wrong> {
        let runners = [machine::ORDINARY_LINE, machine::FAST_LINE];
        for line in machine::own_lines(self.tick).chain(runners.into_iter().filter(|&line| all && line != 0)) {
            let before = forwarded();
            raise_at_entry(line);
            self.plain()?;
            expect(forwarded() == before + 1, "an interrupt was not handled once")?;
        }
        Ok(())
    }

    /// A caller with interrupts masked: one that is pending stays so, and its state comes back.
    fn masked(&mut self) -> Result<(), Wrong> {
        let Some(line) = machine::own_lines(self.tick).next() else {
            return Err(Wrong("this machine has no interrupts"));
        };
        let before = forwarded();
        let state = interrupts::disable();
        machine::raise(line);
        let done = self.plain().and_then(|()| self.one_ending());
        let kept = !interrupts::enabled() && forwarded() == before;
        interrupts::restore(state);
        done?;
        expect(kept, "a masked caller got an interrupt")?;
        machine::settle();
        expect(interrupts::enabled() && forwarded() == before + 1, "what was masked did not arrive afterwards")
    }

    fn one_ending(&mut self) -> Result<(), Wrong> {
        let Err(CallError::Exit(_)) = self.sandbox.call(read, (Val(0_u64),)) else {
            return Err(Wrong("a sandbox read the address 0"));
        };
        Ok(())
    }

    /// Calls with other settings of the host's in force, which must be there afterwards.
    fn in_host_states(&mut self) -> Result<(), Wrong> {
        for state in machine::HostState::all() {
            let number = self.number + 1;
            self.number = number;
            let (sandbox, vectors) = (&mut self.sandbox, &mut self.vectors);
            state.during(|| {
                check_mix(sandbox, number)?;
                check_mix(vectors, number)?;
                sandbox.call(spoil, ())?;
                match sandbox.call(read, (Val(0_u64),)) {
                    Err(CallError::Exit(_)) => Ok(()),
                    _ => Err(Wrong("a sandbox read the address 0")),
                }
            })?;
        }
        Ok(())
    }

    /// A sandbox from beginning to end.
    fn life(&mut self) -> Result<(), Wrong> {
        let mut sandbox = self.hal.sandbox()?;
        self.number += 1;
        check_mix(&mut sandbox, self.number)
    }
}

fn check_mix(sandbox: &mut Sandbox<'static, Watched>, number: u64) -> Result<(), Wrong> {
    let bytes = core::array::from_fn(|index| (index as u64).wrapping_mul(number) as u8);
    let (mut digest, mut sum) = ([0; 64], number);
    let result = sandbox.call(mix, (Val(number), In(&bytes), Out(&mut digest), InOut(&mut sum)))?;
    let (mut digest_here, mut sum_here) = ([0; 64], number);
    let result_here = mix(number, &bytes, &mut digest_here, &mut sum_here);
    expect((result, digest, sum) == (result_here, digest_here, sum_here), "a result is wrong")
}

/// Calls the function at `address`.
fn jump(address: u64) {
    // SAFETY: the address is a function's of the right type; it runs in the sandbox.
    let function = unsafe { core::mem::transmute::<*const (), extern "C" fn()>(address as *const ()) };
    function();
}

/// Reads the byte at `address`.
fn read(address: u64) -> u64 {
    // SAFETY: runs in a sandbox, which is what stops it.
    unsafe { u64::from((address as *const u8).read_volatile()) }
}

/// Changes what unprivileged code can change of the host's state.
fn spoil() {
    machine::spoil();
}
