//! Threads that used a space while nobody recorded their calls: when, as far as the log tells, and so
//! what of the space the log can still vouch for.

use std::collections::BTreeMap;

use maptrail_tracelog::record::{NotTraced, Untraced};
use maptrail_tracelog::types::{Addr, Nanos, Range, SpaceId, Tid};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::world::{Thread, World};

/// A thread whose calls were not recorded, for views.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UntracedThread {
    /// Its tid.
    pub tid: Tid,
    /// `comm`.
    pub name: String,
    /// Why.
    #[serde(serialize_with = "word")]
    pub why: NotTraced,
    /// CPU time that it used meanwhile, as seconds in JSON; `None` if nobody could tell.
    #[serde(rename = "ran_s", serialize_with = "in_seconds")]
    pub ran: Option<Nanos>,
}

fn word<S: serde::Serializer>(why: &NotTraced, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(match why {
        NotTraced::NotChosen => "not-chosen",
        NotTraced::Late => "late",
        NotTraced::OtherProcess => "other-process",
    })
}

fn in_seconds<S: serde::Serializer>(ran: &Option<Nanos>, s: S) -> Result<S::Ok, S::Error> {
    ran.map(Nanos::as_secs_f64).serialize(s)
}

impl From<&Untraced> for UntracedThread {
    fn from(told: &Untraced) -> UntracedThread {
        UntracedThread {
            tid: told.tid,
            name: told.name.clone(),
            why: told.why,
            ran: told.ran_ns.map(Nanos),
        }
    }
}

impl UntracedThread {
    /// Whether it may have made a call.
    #[must_use]
    pub fn ran(&self) -> bool {
        self.ran != Some(Nanos(0))
    }
}

/// Of these, how many may have made a call.
#[must_use]
pub fn count(told: &[Untraced]) -> u64 {
    told.iter().filter(|told| told.ran_ns != Some(0)).count() as u64
}

/// When threads may have changed a space unseen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    spans: FxHashMap<SpaceId, Vec<Span>>,
}

/// From `since` up to, and without, `until`.
#[derive(Clone, Copy, Debug)]
struct Span {
    since: Nanos,
    until: Nanos,
}

impl Evidence {
    /// What a whole log has told. A thread is untraced until it is taken up, if it ever is: the record
    /// of one that is not stands before the last checkpoint, and the thread ran on.
    pub(crate) fn of(world: &World) -> Evidence {
        let mut taken_up: FxHashMap<(SpaceId, Tid), Vec<Nanos>> = FxHashMap::default();
        for (_, thread) in world.threads() {
            let Thread { space, tid, .. } = *thread;
            taken_up.entry((space, tid)).or_default().push(thread.start);
        }
        let mut evidence = Evidence::default();
        for told in world.untraced.iter().filter(|told| told.ran_ns != Some(0)) {
            let starts = taken_up.get(&(told.space, told.tid)).into_iter().flatten();
            let until = starts.filter(|start| **start >= told.since).min();
            evidence.spans.entry(told.space).or_default().push(Span {
                since: told.since,
                until: until.copied().unwrap_or(Nanos(u64::MAX)),
            });
        }
        evidence
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Whether an untraced thread may have acted on `space` at any time from `from` to `to`.
    fn covers(&self, space: SpaceId, from: Nanos, to: Nanos) -> bool {
        let mut spans = self.spans.get(&space).into_iter().flatten();
        spans.any(|span| span.since <= to && from < span.until)
    }
}

/// What the log can vouch for in one space.
#[derive(Clone, Debug)]
pub(crate) struct Vouched {
    space: SpaceId,
    /// The story is told up to here.
    told: Nanos,
    /// Nothing was done unseen since the first checkpoint: all is vouched for.
    all: bool,
    /// Else these ranges: the kernel's word on them is newer than anything done unseen.
    ranges: Ranges,
}

impl Vouched {
    /// At its first checkpoint, the kernel has said all about a space.
    pub(crate) fn from_first_checkpoint(space: SpaceId, at: Nanos) -> Vouched {
        Vouched {
            space,
            told: at,
            all: true,
            ranges: Ranges::default(),
        }
    }

    /// Time has come to `at`.
    pub(crate) fn advance(&mut self, evidence: &Evidence, at: Nanos) {
        if at > self.told {
            if evidence.covers(self.space, self.told, at) {
                self.all = false;
                self.ranges = Ranges::default();
            }
            self.told = at;
        }
    }

    /// A call that began at `at`, or a look then, settles all that is to be said about `range`.
    pub(crate) fn settled(&mut self, evidence: &Evidence, at: Nanos, range: Range) {
        self.advance(evidence, at);
        if !self.all && !evidence.covers(self.space, at, self.told) {
            self.ranges.insert(range);
        }
    }

    /// What `range` shows now depends on what may have been done unseen elsewhere.
    pub(crate) fn unsettled(&mut self, range: Range) {
        self.ranges.remove(range);
    }

    /// The parts of `range` that the log vouches for, ascending.
    pub(crate) fn within(&self, range: Range) -> Vec<Range> {
        if self.all {
            return vec![range];
        }
        self.ranges.within(range)
    }
}

/// Ranges that are apart from each other, by start, with their ends.
#[derive(Clone, Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn insert(&mut self, range: Range) {
        let mut whole = range;
        while let Some((&start, &end)) = self.0.range(..=whole.end.0).next_back()
            && end >= whole.start.0
        {
            self.0.remove(&start);
            whole.start = whole.start.min(Addr(start));
            whole.end = whole.end.max(Addr(end));
        }
        self.0.insert(whole.start.0, whole.end.0);
    }

    fn remove(&mut self, range: Range) {
        while let Some((&start, &end)) = self.0.range(..range.end.0).next_back()
            && end > range.start.0
        {
            self.0.remove(&start);
            if end > range.end.0 {
                self.0.insert(range.end.0, end);
            }
            if start < range.start.0 {
                self.0.insert(start, range.start.0);
            }
        }
    }

    fn within(&self, range: Range) -> Vec<Range> {
        let below = self.0.range(..range.start.0).next_back();
        let (below, rest) = (below.into_iter(), self.0.range(range.start.0..range.end.0));
        below
            .chain(rest)
            .filter_map(|(&start, &end)| {
                let known = Range {
                    start: Addr(start),
                    end: Addr(end),
                };
                known.intersect(range)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> Range {
        Range {
            start: Addr(start),
            end: Addr(end),
        }
    }

    proptest! {
        #[test]
        fn ranges_agree_with_an_array_of_flags(
            acts in prop::collection::vec((any::<bool>(), 0..30u64, 1..9u64), 0..40),
            start in 0..30u64,
            len in 1..20u64,
        ) {
            let (mut ranges, mut flags) = (Ranges::default(), [false; 64]);
            for (insert, start, len) in acts {
                let range = range(start, start + len);
                if insert { ranges.insert(range) } else { ranges.remove(range) }
                flags[start as usize..(start + len) as usize].fill(insert);
            }
            let asked = range(start, start + len);
            let mut found = [false; 64];
            for part in ranges.within(asked) {
                found[part.start.0 as usize..part.end.0 as usize].fill(true);
            }
            for (at, flag) in (0..).zip(&mut flags) {
                *flag &= asked.contains(Addr(at));
            }
            prop_assert_eq!(found, flags);
        }
    }
}
