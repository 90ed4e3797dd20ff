//! Releases that cannot fail, so that nobody needs to stop at their exit: one stop instead of two.
//!
//! `munmap` of exactly what one plain `mmap` made succeeds, whatever became of the pages' permissions,
//! unless the kernel would have to split a mapping and has reached its limit of mappings (mm/vma.c,
//! `vms_gather_munmap_vmas`). Neither sealed memory nor huge pages, which can refuse, come to lie
//! there without a call that is recorded and takes the range out here. It does not know what is
//! mapped: what it has forgotten is stopped at twice, as everything else.

use std::collections::BTreeMap;

use maptrail_tracelog::calls::{Call, Effect};
use maptrail_tracelog::record::CallEvent;
use maptrail_tracelog::types::Range;

use super::calls::MREMAP_FIXED;

/// Mappings that are remembered for a space, at most.
const MAX_MADE: usize = 1 << 16;
/// MAP_PRIVATE | MAP_ANONYMOUS, and what changes nothing about a release: MAP_NORESERVE, MAP_POPULATE
/// and MAP_STACK.
const PLAIN: u64 = 0x22;
const HARMLESS: u64 = 0x4000 | 0x8000 | 0x2_0000;

/// What plain calls made in one space and nobody has touched since.
pub struct Fresh {
    /// Start and end.
    made: BTreeMap<u64, u64>,
    /// So many mappings the space had when they were counted, ...
    counted: usize,
    /// ... and so many more it may have by now.
    since: usize,
}

impl Fresh {
    /// Nothing yet, in a space with so many mappings.
    #[must_use]
    pub fn new(mappings: usize) -> Fresh {
        Fresh {
            made: BTreeMap::new(),
            counted: mappings,
            since: 0,
        }
    }

    /// The space has so many mappings now.
    pub fn recounted(&mut self, mappings: usize) {
        (self.counted, self.since) = (mappings, 0);
    }

    /// Whether it must be counted again, given the kernel's limit.
    #[must_use]
    pub fn is_stale(&self, limit: usize) -> bool {
        self.since > limit / 8
    }

    /// A call succeeded.
    pub fn succeeded(&mut self, event: &CallEvent) {
        self.since += 2;
        let plain = event.call == Call::Mmap && event.args[3] & !HARMLESS == PLAIN;
        let made = event
            .outcome
            .value()
            .and_then(|start| Range::pages(start, event.args[1]));
        match made {
            Some(range) if plain => {
                if self.made.len() < MAX_MADE {
                    self.made.insert(range.start.0, range.end.0);
                }
            }
            _ => self.touched(event.call, &event.args),
        }
    }

    /// A call is about to be made, or has been.
    pub fn touched(&mut self, call: Call, args: &[u64; 6]) {
        let [a0, a1, a2, a3, a4, _] = *args;
        match call.effect() {
            _ if call == Call::Mseal => self.made.clear(),
            // Permissions and advice change what a page is good for, not whether it can go.
            Effect::Protect | Effect::Advise | Effect::Brk => {}
            // Where nobody asked for a place the kernel takes a free one.
            Effect::Map if a0 == 0 => {}
            Effect::Map | Effect::Unmap => self.forget(a0, a1),
            Effect::Remap => {
                self.forget(a0, a1.max(1));
                if a3 & MREMAP_FIXED != 0 {
                    self.forget(a4, a2);
                }
            }
            Effect::Detach | Effect::Look => self.made.clear(),
        }
    }

    /// A `munmap` of `len` bytes at `addr` cannot fail. The range is forgotten.
    #[must_use]
    pub fn releases(&mut self, addr: u64, len: u64, limit: usize) -> bool {
        let exact = Range::pages(addr, len).is_some_and(|range| {
            range.start.0 == addr && self.made.get(&addr) == Some(&range.end.0)
        });
        if exact {
            self.made.remove(&addr);
            self.since += 1;
        } else {
            self.forget(addr, len);
        }
        exact && self.counted.saturating_add(self.since) < limit / 2
    }

    fn forget(&mut self, addr: u64, len: u64) {
        let Some(range) = Range::pages(addr, len) else {
            return;
        };
        loop {
            let last = self.made.range(..range.end.0).next_back();
            match last.map(|(start, end)| (*start, *end)) {
                Some((start, end)) if end > range.start.0 => self.made.remove(&start),
                _ => return,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use maptrail_tracelog::calls::Abi;
    use maptrail_tracelog::record::Outcome;
    use maptrail_tracelog::types::{FileId, Nanos, SpaceId, StackId, Stamp, ThreadIx};

    use super::*;

    const LIMIT: usize = 65530;
    const A: u64 = 0x7000_0000_0000;

    fn done(call: Call, args: [u64; 6], result: u64) -> CallEvent {
        CallEvent {
            thread: ThreadIx(0),
            space: SpaceId(0),
            call,
            abi: Abi::X86_64,
            args,
            outcome: Outcome::Returned(result as i64),
            entry: Stamp(1),
            exit: Stamp(2),
            entry_ns: Nanos(0),
            exit_ns: Nanos(0),
            stack: StackId::NONE,
            file: FileId::ANON,
        }
    }

    fn mmap(flags: u64) -> CallEvent {
        done(Call::Mmap, [0, 0x3000, 3, flags, u64::MAX, 0], A)
    }

    fn with(events: &[CallEvent]) -> Fresh {
        let mut fresh = Fresh::new(20);
        for event in events {
            fresh.touched(event.call, &event.args);
            fresh.succeeded(event);
        }
        fresh
    }

    #[test]
    fn exactly_what_one_call_made_goes_once() {
        let mut fresh = with(&[mmap(0x22)]);
        assert!(fresh.releases(A, 0x2800, LIMIT), "lengths are rounded up");
        assert!(!fresh.releases(A, 0x3000, LIMIT), "it is gone");
        for (addr, len) in [
            (A, 0x2000),
            (A, 0x4000),
            (A + 0x1000, 0x2000),
            (A + 1, 0x3000),
            (A, 0),
        ] {
            assert!(
                !with(&[mmap(0x22)]).releases(addr, len, LIMIT),
                "{addr:#x} {len:#x}"
            );
        }
    }

    #[test]
    fn only_plain_memory_counts() {
        for flags in [0x21, 0x32, 0x4_0022, 0x122, 0x2022] {
            assert!(
                !with(&[mmap(flags)]).releases(A, 0x3000, LIMIT),
                "{flags:#x}"
            );
        }
    }

    #[test]
    fn calls_that_touch_the_range_forget_it() {
        let cases = [
            (Call::Munmap, [A + 0x2000, 0x9000, 0, 0, 0, 0], 0),
            (Call::Mmap, [A, 0x1000, 3, 0x4_0032, u64::MAX, 0], A),
            (Call::Mremap, [A, 0x3000, 0x9000, 1, 0, 0], A - 0x10_0000),
            (
                Call::Mremap,
                [A - 0x10_0000, 0x1000, 0x1000, 3, A + 0x1000, 0],
                A + 0x1000,
            ),
            (Call::Mseal, [A, 0x1000, 0, 0, 0, 0], 0),
        ];
        for (call, args, result) in cases {
            let mut fresh = with(&[mmap(0x22), done(call, args, result)]);
            assert!(!fresh.releases(A, 0x3000, LIMIT), "{call:?}");
        }
        let protect = done(Call::Mprotect, [A, 0x1000, 0, 0, 0, 0], 0);
        assert!(with(&[mmap(0x22), protect]).releases(A, 0x3000, LIMIT));
    }

    #[test]
    fn near_the_limit_of_mappings_a_release_may_fail() {
        let mut fresh = with(&[mmap(0x22)]);
        fresh.recounted(LIMIT - 10);
        assert!(!fresh.releases(A, 0x3000, LIMIT));
    }
}
