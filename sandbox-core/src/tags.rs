//! Tags for cached translations: numbers that the CPU keeps with each, so that those of one address space are not used in another
//! (an ASID, a PCID).
//!
//! Each CPU has its own numbers, given by the host, and gives them out one after the other: no lock, nothing shared. A number
//! that was given out comes back only when the CPU has forgotten all cached translations, with which a new *generation* of
//! numbers begins. So nobody has to say that a sandbox was dropped, changed, or moved to another CPU: it takes another
//! number, and what is cached under the old one is never used again.
//!
//! What must hold: a view is run under a number only if the CPU that it is about to run on gave it that number, in its present
//! generation, after the view's last change; and only if it shares no page with the host that the host maps globally: such a
//! translation is found under every tag, beside the view's own.

/// The numbers of one CPU. Made by the backend when the CPU starts, and kept where only that CPU comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tags {
    first: u16,
    last: u16,
    /// The next to be given out, if there is one.
    next: Option<u16>,
    /// How often all numbers have been used up.
    generation: u64,
}

impl Tags {
    /// The numbers from `first` to `last`; `None` if that is none. Nothing is assumed of what is cached under them: the first
    /// use flushes.
    pub const fn new(first: u16, last: u16) -> Option<Tags> {
        if first > last {
            return None;
        }
        Some(Tags { first, last, next: None, generation: 0 })
    }

    /// The next number of the CPU `cpu`, and whether all cached translations must go before it is used.
    fn take(&mut self, cpu: usize) -> (Tag, bool) {
        let (number, flush) = match self.next {
            Some(number) => (number, false),
            None => {
                self.generation += 1;
                (self.first, true)
            }
        };
        self.next = if number < self.last { Some(number + 1) } else { None };
        (Tag { cpu, generation: self.generation, number }, flush)
    }
}

/// A number that a CPU gave out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag {
    /// What tells the CPU from others.
    cpu: usize,
    generation: u64,
    pub(crate) number: u16,
}

/// What an entry does about cached translations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Choice {
    /// The backend lets none outlive a change of roots.
    Flush,
    /// The view has run under this tag and is as it was.
    Reuse(Tag),
    /// Nothing is cached under this tag.
    Fresh(Tag),
    /// Nothing will be, once everything cached is forgotten.
    RollOver(Tag),
}

/// The decision for a view that is about to run on the CPU `cpu`.
///
/// | the CPU has tags | a page is global in the host | tag of this CPU and generation, view unchanged | CPU has a number left | |
/// | --- | --- | --- | --- | --- |
/// | no | - | - | - | flush |
/// | yes | yes | - | - | flush |
/// | yes | no | yes | - | reuse |
/// | yes | no | no | yes | fresh |
/// | yes | no | no | no | roll over |
///
/// `tag` is what the view last ran under, and `None` since it has changed.
#[inline]
pub(crate) fn choose(tags: Option<&mut Tags>, global: bool, tag: Option<Tag>, cpu: usize) -> Choice {
    let Some(tags) = tags.filter(|_| !global) else {
        return Choice::Flush;
    };
    match tag {
        Some(tag) if tag.cpu == cpu && tag.generation == tags.generation => Choice::Reuse(tag),
        _ => match tags.take(cpu) {
            (tag, false) => Choice::Fresh(tag),
            (tag, true) => Choice::RollOver(tag),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: usize = 7;
    const THERE: usize = 8;

    fn tag(cpu: usize, generation: u64, number: u16) -> Tag {
        Tag { cpu, generation, number }
    }

    /// A CPU in its second generation that gave out 5 and has 6 left.
    const BUSY: Tags = Tags { first: 4, last: 6, next: Some(6), generation: 2 };
    /// The same with none left.
    const SPENT: Tags = Tags { next: None, ..BUSY };

    #[test]
    fn the_decision_table() {
        let old = tag(HERE, 2, 5);
        for (tags, global, remembered, expected, left) in [
            (None, false, None, Choice::Flush, None),
            (None, false, Some(old), Choice::Flush, None),
            (Some(BUSY), true, None, Choice::Flush, Some(BUSY)),
            (Some(BUSY), true, Some(old), Choice::Flush, Some(BUSY)),
            (Some(SPENT), true, None, Choice::Flush, Some(SPENT)),
            (Some(BUSY), false, Some(old), Choice::Reuse(old), Some(BUSY)),
            (Some(SPENT), false, Some(old), Choice::Reuse(old), Some(SPENT)),
            (Some(BUSY), false, None, Choice::Fresh(tag(HERE, 2, 6)), Some(SPENT)),
            (Some(BUSY), false, Some(tag(THERE, 2, 5)), Choice::Fresh(tag(HERE, 2, 6)), Some(SPENT)),
            (Some(BUSY), false, Some(tag(HERE, 1, 5)), Choice::Fresh(tag(HERE, 2, 6)), Some(SPENT)),
        ] {
            let mut tags = tags;
            assert_eq!(choose(tags.as_mut(), global, remembered, HERE), expected);
            assert_eq!(tags, left);
        }
        let rolled = Tags { next: Some(5), generation: 3, ..BUSY };
        for remembered in [None, Some(tag(THERE, 2, 5)), Some(tag(HERE, 1, 5))] {
            let mut tags = SPENT;
            assert_eq!(choose(Some(&mut tags), false, remembered, HERE), Choice::RollOver(tag(HERE, 3, 4)));
            assert_eq!(tags, rolled);
        }
    }

    #[test]
    fn no_number_twice_in_a_generation() {
        for (first, last) in [(0, 0), (1, 3), (9, 9), (0xfffe, 0xffff), (0, u16::MAX)] {
            let mut tags = Tags::new(first, last).unwrap();
            for generation in 1..4 {
                for number in first..=last {
                    assert_eq!(tags.take(HERE), (tag(HERE, generation, number), number == first));
                }
            }
        }
        assert_eq!(Tags::new(1, 0), None);
    }
}
