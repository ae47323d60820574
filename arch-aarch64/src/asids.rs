//! ASIDs: which a host may give, and how a run comes under one.
//!
//! What must hold: nothing is ever walked under an ASID that belongs to other tables, the upper levels of the tables included, which
//! CPUs cache by address and ASID too. So the root of the half that the gate runs in and the ASID change in *one* write, while
//! the other half has a root without entries; `roots.s` draws it. Such a write needs the ASID to be taken from that half
//! (TCR_EL1.A1). Where the host takes it from the other, a run borrows the bit: the host's own ASID is put into both roots,
//! A1 is turned over, which changes nothing and which no TLB remembers (Arm ARM, section D23.2.150), and turned back
//! on the way out.

use sandbox_core::arch::Tags;
use sandbox_core::format::MAX_ROOTS;
use sandbox_core::{Error, VirtAddr};

/// Where a root holds an ASID.
const ASID_SHIFT: u32 = 48;
const ASID: u64 = 0xffff << ASID_SHIFT;

/// TCR_EL1: the ASID is TTBR1_EL1's, and ASIDs have 16 bits.
const TCR_A1: u64 = 1 << 22;
const TCR_AS: u64 = 1 << 36;

/// ID_AA64MMFR0_EL1.ASIDBits: the CPU has ASIDs of 16 bits.
const ASID_BITS_SHIFT: u32 = 4;
const ASID_BITS_MASK: u64 = 0b1111;
const ASID_BITS_16: u64 = 0b0010;

/// How the gate changes the roots, as it finds it in its data: nothing is set for the flush policy.
pub(crate) mod way {
    /// Under ASIDs.
    pub(crate) const TAGGED: u64 = 1 << 0;
    /// The gate is in the high half.
    pub(crate) const HIGH: u64 = 1 << HIGH_BIT;
    pub(crate) const HIGH_BIT: u32 = 1;
    /// The host has its ASID in the half where the gate is not.
    pub(crate) const BORROW: u64 = 1 << BORROW_BIT;
    pub(crate) const BORROW_BIT: u32 = 2;
}

/// What a CPU needs for runs under ASIDs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asids {
    pub(crate) tags: Tags,
    /// The bits of [`way`].
    way: u64,
}

/// What the host has in the registers that a switch is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) tcr: u64,
    /// TTBR0_EL1 and TTBR1_EL1.
    pub(crate) roots: [u64; MAX_ROOTS],
}

impl Setting {
    /// Where it doesn't matter.
    pub(crate) const NONE: Setting = Setting { tcr: 0, roots: [0; MAX_ROOTS] };
}

impl Asids {
    /// For the ASIDs from `first` to `last`, with the gate's data and code at these addresses, on a CPU whose ID_AA64MMFR0_EL1 is
    /// `features`.
    pub(crate) fn new(
        first: u16,
        last: u16,
        setting: &Setting,
        features: u64,
        data: VirtAddr,
        code: VirtAddr,
    ) -> Result<Asids, Error> {
        let wide = setting.tcr & TCR_AS != 0 && features >> ASID_BITS_SHIFT & ASID_BITS_MASK == ASID_BITS_16;
        let most = if wide { u16::MAX } else { u8::MAX.into() };
        let asid_half = half_with_asid(setting.tcr);
        let own = (setting.roots[asid_half] >> ASID_SHIFT) as u16 & most;
        let tags = Tags::new(first, last).filter(|_| last <= most && !(first..=last).contains(&own));
        let tags = tags.ok_or(Error::BadTags { first, last, most })?;
        let half = half_of(data);
        if half_of(code) != half {
            return Err(Error::GateNotMapped);
        }
        let mut way = way::TAGGED;
        if half == 1 {
            way |= way::HIGH;
        }
        if half != asid_half {
            way |= way::BORROW;
        }
        Ok(Asids { tags, way })
    }

    /// Whether the host's roots and TCR_EL1 must be known for [`switch`](Asids::switch).
    #[inline]
    pub(crate) fn borrows(&self) -> bool {
        self.way & way::BORROW != 0
    }

    /// What the gate needs for a run of `view` under `asid`. `empty` is a root without entries; `host` is what the host has in
    /// its roots and TCR_EL1, where they matter.
    #[inline]
    pub(crate) fn switch(&self, view: [u64; MAX_ROOTS], asid: u16, empty: u64, host: Setting) -> Switch {
        let gate = usize::from(self.way & way::HIGH != 0);
        let other = 1 - gate;
        let mut switch = Switch { way: self.way, view, pass: [empty; MAX_ROOTS], host_tcr: 0, run_tcr: 0 };
        switch.view[gate] |= u64::from(asid) << ASID_SHIFT;
        if self.borrows() {
            let own = host.roots[other] & ASID;
            switch.pass[other] = empty | own;
            switch.pass[gate] = host.roots[gate] & !ASID | own;
            switch.host_tcr = host.tcr;
            switch.run_tcr = host.tcr ^ TCR_A1;
        }
        switch
    }
}

/// What the gate needs to go from the host's roots to a view's under an ASID, and back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Switch {
    pub(crate) way: u64,
    /// The view's roots, the ASID in that of the gate's half.
    pub(crate) view: [u64; MAX_ROOTS],
    /// What to pass through: no entries in the half where the gate is not; where A1 is borrowed, the host's ASID in both.
    pub(crate) pass: [u64; MAX_ROOTS],
    pub(crate) host_tcr: u64,
    pub(crate) run_tcr: u64,
}

/// Which root holds the ASID in force.
fn half_with_asid(tcr: u64) -> usize {
    usize::from(tcr & TCR_A1 != 0)
}

fn half_of(address: VirtAddr) -> usize {
    usize::from(address.0 >> 63 != 0)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const LOW: VirtAddr = VirtAddr(0x40_0000);
    const HIGH: VirtAddr = VirtAddr(0xffff_8000_0000_0000);

    fn setting(tcr: u64) -> Setting {
        Setting { tcr, roots: [0x7_0000_0000_1000, 0x8_0000_0000_2001] }
    }

    fn make(first: u16, last: u16, tcr: u64, features: u64) -> Result<Asids, Error> {
        Asids::new(first, last, &setting(tcr), features, HIGH, HIGH)
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let narrow = |first, last| Err(Error::BadTags { first, last, most: 255 });
        let wide = |first, last| Err(Error::BadTags { first, last, most: 65535 });
        for (tcr, features) in [(0, 0), (0, 0x20), (TCR_AS, 0)] {
            assert!(make(16, 255, tcr, features).is_ok());
            for (first, last) in [(16, 256), (300, 400), (9, 8), (0, u16::MAX)] {
                assert_eq!(make(first, last, tcr, features).map(drop), narrow(first, last));
            }
        }
        assert!(make(16, u16::MAX, TCR_AS, 0x20).is_ok());
        assert_eq!(make(1, 0, TCR_AS, 0x20).map(drop), wide(1, 0));
        // The host's own, from the root that A1 names.
        assert_eq!(make(6, 7, TCR_AS, 0x20).map(drop), wide(6, 7));
        assert_eq!(make(0, 7, 0, 0).map(drop), narrow(0, 7));
        assert!(make(8, 9, TCR_AS, 0x20).is_ok());
        assert_eq!(make(8, 9, TCR_AS | TCR_A1, 0x20).map(drop), wide(8, 9));
        assert!(make(6, 7, TCR_AS | TCR_A1, 0x20).is_ok());
    }

    #[test]
    fn the_way_depends_on_the_halves() {
        for (tcr, at, expected) in [
            (0, LOW, way::TAGGED),
            (TCR_A1, LOW, way::TAGGED | way::BORROW),
            (0, HIGH, way::TAGGED | way::HIGH | way::BORROW),
            (TCR_A1, HIGH, way::TAGGED | way::HIGH),
        ] {
            assert_eq!(Asids::new(16, 31, &setting(tcr), 0, at, at).unwrap().way, expected);
        }
        assert_eq!(Asids::new(16, 31, &setting(0), 0, LOW, HIGH).map(drop), Err(Error::GateNotMapped));
        assert_eq!(Asids::new(16, 31, &setting(0), 0, HIGH, LOW).map(drop), Err(Error::GateNotMapped));
    }

    /// TCR_EL1 and the roots.
    type Step = (u64, [u64; MAX_ROOTS]);

    /// The steps that `roots.s` makes of a switch: each is in force from one isb to the next.
    fn steps(switch: &Switch, host: &Setting) -> Vec<Step> {
        let gate = usize::from(switch.way & way::HIGH != 0);
        let other = 1 - gate;
        let mut now = (host.tcr, host.roots);
        let mut steps = std::vec![now];
        let mut step = |change: &dyn Fn(&mut Step)| {
            change(&mut now);
            steps.push(now);
        };
        if switch.way & way::BORROW == 0 {
            step(&|now| now.1[other] = switch.pass[other]);
            step(&|now| now.1[gate] = switch.view[gate]);
            step(&|now| now.1[other] = switch.view[other]);
            step(&|now| now.1[other] = switch.pass[other]);
            step(&|now| now.1[gate] = host.roots[gate]);
            step(&|now| now.1[other] = host.roots[other]);
        } else {
            step(&|now| now.1 = switch.pass);
            step(&|now| now.0 = switch.run_tcr);
            step(&|now| now.1[gate] = switch.view[gate]);
            step(&|now| now.1[other] = switch.view[other]);
            step(&|now| now.1[other] = switch.pass[other]);
            step(&|now| now.1[gate] = switch.pass[gate]);
            step(&|now| now.0 = switch.host_tcr);
            step(&|now| now.1 = host.roots);
        }
        steps
    }

    #[test]
    fn no_tables_under_another_asid() {
        const EMPTY: u64 = 0x3000;
        const VIEW: [u64; 2] = [0x4000, 0x5000];
        const NUMBER: u16 = 20;
        let tables = |root: u64| root & !ASID & !0xfff;
        for (tcr, at) in [(0, LOW), (TCR_A1, LOW), (0, HIGH), (TCR_A1, HIGH)] {
            let host = setting(tcr | TCR_AS);
            let own = (host.roots[half_with_asid(tcr)] >> ASID_SHIFT) as u16;
            let asids = Asids::new(16, 31, &host, 0x20, at, at).unwrap();
            let switch = asids.switch(VIEW, NUMBER, EMPTY, host);
            let steps = steps(&switch, &host);
            let mut ran = false;
            for (tcr, roots) in &steps {
                let asid = (roots[half_with_asid(*tcr)] >> ASID_SHIFT) as u16;
                let allowed = if asid == own { host.roots } else { VIEW };
                assert!(asid == own || asid == NUMBER, "ASID {asid}");
                for half in 0..2 {
                    let root = tables(roots[half]);
                    // What has the gate in it changes with the ASID alone.
                    let empty = root == EMPTY && half != half_of(at);
                    assert!(root == tables(allowed[half]) || empty, "{root:#x} in half {half} under {asid}");
                }
                // Nothing shared with other CPUs under an ASID of this one.
                assert!(asid == own || roots.iter().all(|root| root & 1 == 0));
                ran |= asid == NUMBER && roots.map(tables) == VIEW;
            }
            assert!(ran);
            assert_eq!(steps[0], *steps.last().unwrap());
        }
    }

    #[test]
    fn unsynchronized_writes_make_no_difference() {
        // Where two registers are written between one isb and the next, either may count first.
        for tcr in [0, TCR_A1] {
            let host = setting(tcr | TCR_AS);
            let at = if tcr == 0 { HIGH } else { LOW };
            let switch = Asids::new(16, 31, &host, 0x20, at, at).unwrap().switch([0x4000, 0x5000], 20, 0x3000, host);
            let asid = |roots: [u64; 2]| roots[half_with_asid(tcr)] & ASID;
            let mixed = |half: usize| core::array::from_fn(|i| if i == half { switch.pass[i] } else { host.roots[i] });
            for roots in [host.roots, switch.pass, mixed(0), mixed(1)] {
                assert_eq!(asid(roots), asid(host.roots));
            }
            let gate = half_of(at);
            assert_eq!(switch.pass[gate] & !ASID, host.roots[gate] & !ASID);
            // A1 may count before or after.
            assert_eq!(switch.pass[0] & ASID, switch.pass[1] & ASID);
        }
    }
}
