//! Calls that nobody saw end: did they act, and how? The next checkpoint of their space knows.
//!
//! Many threads of a process that is killed die inside a call at once, and one call may have taken
//! the place that another one gave up. So they are judged together: the set of results is sought
//! that brings the model closest to the checkpoint.

use maptrail_tracelog::calls::Effect;
use maptrail_tracelog::record::{CallEvent, Checkpoint, Vma};
use maptrail_tracelog::types::{Addr, PAGE, Range};

use crate::calls::{self, MAP_ANONYMOUS, MAP_SHARED};
use crate::check::{Comparison, compare};
use crate::files::Files;
use crate::region::{BirthId, Region};
use crate::space::Space;

/// MAP_FIXED and MAP_FIXED_NOREPLACE.
const MAP_AT: u64 = 0x10_0010;
const MREMAP_FIXED: u64 = 2;
/// How many places a call may have mapped at are tried in one round, at most.
const MAX_PLACES: usize = 32;
/// Regions and calls that are looked through in a whole search, at most.
const MAX_WORK: usize = 20_000_000;
/// So many calls are judged together, at most: as many threads as die at once, with room to spare.
/// Others are taken to have done nothing.
pub(crate) const MAX_CALLS: usize = 4096;
/// So many calls at a time are thought anew when no single one brings the model closer.
const MAX_TOGETHER: usize = 3;

/// Those of the `unfinished` calls that acted, with the results that explain the checkpoint best. A
/// call that released part of its range stands there once for each part. All release first, in the
/// order given; then all acquire.
#[must_use]
pub fn likeliest(
    unfinished: &[CallEvent],
    space: &Space,
    checkpoint: &Checkpoint,
    files: &Files,
) -> Vec<CallEvent> {
    let things = space.region_count() + checkpoint.vmas.len() + unfinished.len();
    let mut search = Search {
        unfinished,
        space,
        checkpoint,
        files,
        mapped: joined(checkpoint.vmas.iter().map(|vma| vma.range)),
        given_up: joined(given_up(unfinished)),
        acted: vec![Vec::new(); unfinished.len()],
        trials: MAX_WORK / (things + 1),
    };
    let mut difference = search.compared();
    while difference.drift_bytes() > 0 {
        let before = difference.drift_bytes();
        // Each by itself: of many that were cut off, most have nothing to do with each other.
        for at in 0..unfinished.len() {
            let found = search.best_at(at, 1, &difference);
            search.take(found, &mut difference);
        }
        if difference.drift_bytes() < before {
            continue;
        }
        let better = (2..=MAX_TOGETHER).find_map(|together| {
            let found = search.best_of(together, &difference);
            (found.drift < before).then_some(found)
        });
        let Some(found) = better else { break };
        search.take(found, &mut difference);
    }
    search.acted.into_iter().flatten().collect()
}

/// A search for what the calls did, by small changes to what is thought that they did.
struct Search<'a> {
    unfinished: &'a [CallEvent],
    space: &'a Space,
    checkpoint: &'a Checkpoint,
    files: &'a Files,
    /// What the kernel has mapped, ascending, neighbours joined.
    mapped: Vec<Range>,
    /// What the calls may have released, in the same way.
    given_up: Vec<Range>,
    /// For each call, what it is thought to have done.
    acted: Vec<Form>,
    /// How often one may still look through all regions and calls: to think of what a call may have
    /// done takes that, and to compare what comes of it.
    trials: usize,
}

/// What a call did, as calls that were seen to end; none if it did nothing.
type Form = Vec<CallEvent>;

/// Changes to what is thought, and the drift that they leave.
struct Found {
    drift: u64,
    changes: Vec<(usize, Form)>,
}

impl Found {
    fn nothing(difference: &Comparison) -> Found {
        Found {
            drift: difference.drift_bytes(),
            changes: Vec::new(),
        }
    }
}

impl Search<'_> {
    fn compared(&self) -> Comparison {
        let after = after(self.space, self.acted.iter().flatten(), self.files);
        compare(&after, self.checkpoint, self.files)
    }

    /// Puts another form in the place of a call's, and gives back the one that was there.
    fn replace(&mut self, at: usize, form: Form) -> Form {
        self.acted
            .get_mut(at)
            .map(|now| std::mem::replace(now, form))
            .unwrap_or_default()
    }

    /// Thinks so from now on, if that is closer to the checkpoint.
    fn take(&mut self, found: Found, difference: &mut Comparison) {
        if found.drift < difference.drift_bytes() {
            for (at, form) in found.changes {
                self.replace(at, form);
            }
            *difference = self.compared();
        }
    }

    /// The best that `together` changes can do, made one upon the other.
    fn best_of(&mut self, together: usize, difference: &Comparison) -> Found {
        let mut best = Found::nothing(difference);
        for at in 0..self.unfinished.len() {
            let found = self.best_at(at, together, difference);
            if found.drift < best.drift {
                best = found;
            }
            if self.trials == 0 || best.drift == 0 {
                break;
            }
        }
        best
    }

    /// The same, if the first of the changes is that of one call.
    fn best_at(&mut self, at: usize, together: usize, difference: &Comparison) -> Found {
        let mut best = Found::nothing(difference);
        let Some(event) = self.unfinished.get(at) else {
            return best;
        };
        self.trials = self.trials.saturating_sub(1);
        for form in self.forms(event, difference) {
            if self.trials == 0 || best.drift == 0 {
                break;
            }
            self.trials = self.trials.saturating_sub(1);
            let before = self.replace(at, form);
            let then = self.compared();
            let mut found = if together > 1 {
                self.best_of(together - 1, &then)
            } else {
                Found::nothing(&then)
            };
            let form = self.replace(at, before);
            if found.drift < best.drift {
                found.changes.insert(0, (at, form));
                best = found;
            }
        }
        best
    }

    /// What a call may have done.
    fn forms(&self, event: &CallEvent, difference: &Comparison) -> Vec<Form> {
        if event.call.effect() == Effect::Unmap {
            return vec![Vec::new(), released(event, difference)];
        }
        let mut forms = vec![Vec::new()];
        for result in self.results(event, difference) {
            let acted = self.of_file(calls::returning(event, result));
            forms.push(vec![acted]);
            if event.call.effect() == Effect::Remap && result != event.args[0] {
                forms.push(vec![from_reused(acted)]);
            }
        }
        forms
    }

    /// The same call with the file that the kernel shows where it would have mapped, if it is a call
    /// that can have mapped that: nobody saw it end, so nobody asked what is behind its descriptor.
    fn of_file(&self, event: CallEvent) -> CallEvent {
        let flags = event.args[3];
        let has_file = flags & MAP_ANONYMOUS == 0 || flags & MAP_SHARED != 0;
        if event.call.effect() != Effect::Map || !has_file {
            return event;
        }
        let fits = |vma: &Vma| {
            let file = vma.file;
            let event = CallEvent { file, ..event };
            let region = calls::mapped(&event, BirthId::PRE_EXISTING, self.files)?;
            let shown = Region::shown(vma, BirthId::PRE_EXISTING, self.files);
            let is_shown = shown.clipped(region.range)?.range == region.range;
            (is_shown && shown.same_at(&region, self.files)).then_some(event)
        };
        self.vma_at(event.outcome.value())
            .and_then(fits)
            .unwrap_or(event)
    }

    /// What the kernel has at an address.
    fn vma_at(&self, addr: Option<u64>) -> Option<&Vma> {
        let addr = Addr(addr?);
        let vmas = &self.checkpoint.vmas;
        let after = vmas.partition_point(|vma| vma.range.start <= addr);
        let below = vmas.get(after.checked_sub(1)?)?;
        below.range.contains(addr).then_some(below)
    }

    /// Values that the call could have come back with.
    fn results(&self, event: &CallEvent, difference: &Comparison) -> Vec<u64> {
        let [a0, a1, a2, a3, a4, _] = event.args;
        match event.call.effect() {
            Effect::Map if a3 & MAP_AT != 0 => vec![a0],
            Effect::Map => self.places(a1, difference),
            Effect::Remap if a3 & MREMAP_FIXED != 0 => vec![a4],
            Effect::Remap => std::iter::once(a0)
                .chain(self.places(a2, difference))
                .collect(),
            Effect::Brk => vec![a0],
            Effect::Unmap | Effect::Protect | Effect::Detach => vec![0],
            Effect::Look | Effect::Advise => Vec::new(),
        }
    }

    /// Where the kernel may have put `len` bytes, which are still there: where it has something that
    /// the model has not, or where another of the calls may have made room; at either end, and over
    /// it. It never puts them where something is.
    fn places(&self, len: u64, difference: &Comparison) -> Vec<u64> {
        let len = len.div_ceil(PAGE).saturating_mul(PAGE);
        difference
            .missing_ranges()
            .chain(given_up(self.unfinished))
            .flat_map(|range| [range.start.0, range.end.0.saturating_sub(len)])
            .filter_map(|start| Range::pages(start, len))
            .filter(|range| lies_in(*range, &self.mapped) && self.may_be_free(*range))
            .map(|range| range.start.0)
            .take(MAX_PLACES)
            .collect()
    }

    /// Whether all that the model has in a range before the calls may have been released by them.
    fn may_be_free(&self, range: Range) -> bool {
        let there = self.space.touching(range);
        let mut there = there.filter_map(|region| region.range.intersect(range));
        there.all(|part| lies_in(part, &self.given_up))
    }
}

/// What calls may have released.
fn given_up(unfinished: &[CallEvent]) -> impl Iterator<Item = Range> + '_ {
    unfinished
        .iter()
        .filter(|event| matches!(event.call.effect(), Effect::Unmap | Effect::Remap))
        .filter_map(|event| Range::pages(event.args[0], event.args[1]))
}

/// Whether one of some ranges, ascending and disjoint, holds all of `range`.
fn lies_in(range: Range, ranges: &[Range]) -> bool {
    let after = ranges.partition_point(|other| other.start <= range.start);
    let below = after.checked_sub(1).and_then(|at| ranges.get(at));
    below.is_some_and(|below| range.end <= below.end)
}

/// A move whose source another call, seen to end, has mapped since: nothing goes from there any
/// more, so it is as if `old_size` had been 0.
fn from_reused(mut moved: CallEvent) -> CallEvent {
    moved.args[1] = 0;
    moved
}

/// A release of what the kernel has no more: other calls, seen to end, may have mapped in its range
/// since.
fn released(event: &CallEvent, difference: &Comparison) -> Form {
    let whole = Range::pages(event.args[0], event.args[1]);
    let gone = difference.extra_ranges();
    gone.filter_map(|range| range.intersect(whole?))
        .map(|part| {
            let mut event = calls::returning(event, 0);
            event.args[0] = part.start.0;
            event.args[1] = part.len();
            event
        })
        .collect()
}

/// The same addresses as maximal ranges, ascending.
fn joined(ranges: impl Iterator<Item = Range>) -> Vec<Range> {
    let mut ranges: Vec<Range> = ranges.collect();
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The space as these calls leave it.
fn after<'a>(
    space: &Space,
    acted: impl Iterator<Item = &'a CallEvent> + Clone,
    files: &Files,
) -> Space {
    let mut space = space.clone();
    let mut deltas = Vec::new();
    for event in acted.clone() {
        for op in calls::at_entry(event, &space).into_iter().flatten() {
            space.apply(&op, files, &mut deltas);
        }
    }
    for event in acted {
        if let Some(op) = calls::at_exit(event, BirthId::PRE_EXISTING, files) {
            space.apply(&op, files, &mut deltas);
        }
    }
    space
}
