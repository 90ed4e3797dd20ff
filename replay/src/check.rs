//! `verify`: the model against the kernel's own list, at every checkpoint after a space's first.
//!
//! Every byte that differs, in being mapped or in an attribute, is drift, with three exceptions. Two are
//! counted by themselves: pages that the kernel grew a stack by, and what threads changed that were not
//! traced. Ranges of calls that had not come back are left out. Nothing here corrects the model.
//!
//! # What is untraced
//! Any thread of a space can change any page of it, so what the end looks like never tells who made it
//! so. What does tell is time. The log vouches for a page from the moment of the kernel's last word on
//! it: the space's first checkpoint, a look, or a recorded call that mapped or unmapped it, as of that
//! call's entry. **A difference is untraced if a thread of the space was running untraced at that moment
//! or after it, and drift if none was.** Evidence of such a thread is an
//! [`Untraced`](maptrail_tracelog::record::Untraced) record of any CPU time but none; it counts up to the
//! moment when the thread is taken up, or for good. So where a thread is found late, what was mapped
//! since is verified as strictly as ever, and where there is no such thread, everything is. Looks are
//! not judged: another thread can act between a call and the look that follows it.

use std::collections::BTreeMap;

use maptrail_tracelog::calls::Effect;
use maptrail_tracelog::record::{Body, CallEvent, Checkpoint, Record, SpaceEnd};
use maptrail_tracelog::types::{Addr, Perms, Pid, Range, SpaceId};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::Error;
use crate::calls;
use crate::files::Files;
use crate::observer::{Judged, Moment, Observer};
use crate::region::{BirthId, Region};
use crate::replay::replay;
use crate::space::{Space, USER_END};
use crate::timeline::Source;
use crate::untraced::{Evidence, UntracedThread, Vouched};
use crate::world::World;

/// What `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verify {
    /// Bytes that differ for no known reason; 0 is the only good number. The sum over spaces.
    pub drift_bytes: u64,
    /// Bytes that differ because threads were not traced, as far as there is evidence for it.
    pub untraced_bytes: u64,
    /// Bytes that the kernel mapped by itself: stacks that grew.
    pub kernel_bytes: u64,
    /// Checkpoints that the model was compared with: all but each space's first.
    pub checkpoints: u64,
    /// Calls whose order or effect was settled by looking at the kernel.
    pub settled: u64,
    /// Events that the recorder saw and did not record: drift after a loss is no wonder.
    pub lost: u64,
    /// The spaces that were compared, by id.
    pub spaces: Vec<SpaceDrift>,
}

/// A space's drift.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpaceDrift {
    /// Its id.
    pub space: SpaceId,
    /// The process that it was first seen in.
    pub pid: Pid,
    /// The drift at its worst checkpoint, bytes.
    pub drift_bytes: u64,
    /// Bytes that differ because threads were not traced, at the checkpoint where most do.
    pub untraced_bytes: u64,
    /// Bytes by which the kernel grew its stacks, at most.
    pub kernel_bytes: u64,
    /// Its checkpoints that were compared.
    pub checkpoints: u64,
    /// Time of the worst checkpoint, nanoseconds from the window's start; `None` without drift.
    pub worst_ns: Option<u64>,
    /// There, what the kernel has and the model has not, or has otherwise.
    pub missing: Vec<DriftRange>,
    /// There, what the model has and the kernel has not.
    pub extra: Vec<DriftRange>,
    /// Where `untraced_bytes` are.
    pub untraced: Vec<DriftRange>,
    /// The space's threads that were not traced, all the time or part of it.
    pub untraced_threads: Vec<UntracedThread>,
}

/// A range in which model and kernel differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DriftRange {
    /// First address.
    pub start: Addr,
    /// First address past it.
    pub end: Addr,
    /// The permissions of the side that has it; the kernel's if both have.
    pub perms: Perms,
    /// What the kernel shows there, as a line of maps without the range; `None` if nothing.
    pub kernel: Option<String>,
    /// What the model has there.
    pub model: Option<String>,
}

/// Replays a log and compares at every checkpoint.
///
/// # Errors
/// Those of reading the log.
pub fn verify(source: &mut impl Source) -> Result<(Verify, World), Error> {
    let mut verifier = Verifier::default();
    let world = replay(source, &mut verifier)?;
    let found = verifier.finish(&world);
    let evidence = Evidence::of(&world);
    if found.drift_bytes == 0 || evidence.is_empty() {
        return Ok((found, world));
    }
    // What threads did unseen is told when they are taken up, or last of all.
    let mut verifier = Verifier {
        evidence,
        ..Verifier::default()
    };
    let world = replay(source, &mut verifier)?;
    Ok((verifier.finish(&world), world))
}

/// The observer behind [`verify`].
#[derive(Debug, Default)]
struct Verifier {
    evidence: Evidence,
    vouched: FxHashMap<SpaceId, Vouched>,
    spaces: BTreeMap<SpaceId, SpaceDrift>,
    in_flight_settled: u64,
}

impl Verifier {
    /// The result, when the replay is over.
    fn finish(mut self, world: &World) -> Verify {
        for told in &world.untraced {
            if let Some(space) = self.spaces.get_mut(&told.space) {
                space.untraced_threads.push(told.into());
            }
        }
        let spaces: Vec<SpaceDrift> = self.spaces.into_values().collect();
        let sum = |of: fn(&SpaceDrift) -> u64| spaces.iter().map(of).fold(0, u64::saturating_add);
        Verify {
            drift_bytes: sum(|s| s.drift_bytes),
            untraced_bytes: sum(|s| s.untraced_bytes),
            kernel_bytes: sum(|s| s.kernel_bytes),
            checkpoints: sum(|s| s.checkpoints),
            settled: world.settled + self.in_flight_settled,
            lost: world.lost,
            spaces,
        }
    }
}

impl Observer for Verifier {
    fn event(&mut self, _world: &World, event: &CallEvent) {
        let Some(vouched) = self.vouched.get_mut(&event.space) else {
            return;
        };
        if event.outcome.value().is_none() {
            return;
        }
        match event.call.effect() {
            Effect::Map | Effect::Unmap => {
                for range in calls::ranges(event) {
                    vouched.settled(&self.evidence, event.entry_ns, range);
                }
            }
            // It carries along what nobody may have seen come.
            Effect::Remap => {
                for range in calls::ranges(event) {
                    vouched.unsettled(range);
                }
            }
            Effect::Protect | Effect::Brk | Effect::Detach | Effect::Look | Effect::Advise => {}
        }
    }

    fn record(&mut self, _world: &World, record: &Record) {
        if let Body::Look(look) = &record.body
            && let Some(vouched) = self.vouched.get_mut(&look.space)
        {
            vouched.settled(&self.evidence, record.ns, look.range);
        }
    }

    fn checkpoint(&mut self, world: &World, moment: &Moment, judged: &Judged<'_>) {
        let id = moment.space;
        let (Some(space), Some(info)) = (world.space(id), world.space_info(id)) else {
            return;
        };
        if judged.first {
            let vouched = Vouched::from_first_checkpoint(id, moment.at);
            self.vouched.insert(id, vouched);
            return;
        }
        let mut found = compare(space, judged.checkpoint, &world.files);
        self.in_flight_settled += found.forgive(judged.in_flight);
        let untraced = match self.vouched.get_mut(&id) {
            Some(vouched) => {
                vouched.advance(&self.evidence, moment.at);
                found.take_untraced(vouched)
            }
            None => Comparison::default(),
        };
        let entry = self.spaces.entry(id).or_insert_with(|| SpaceDrift {
            space: id,
            pid: info.pid,
            drift_bytes: 0,
            untraced_bytes: 0,
            kernel_bytes: 0,
            checkpoints: 0,
            worst_ns: None,
            missing: Vec::new(),
            extra: Vec::new(),
            untraced: Vec::new(),
            untraced_threads: Vec::new(),
        });
        entry.checkpoints += 1;
        entry.kernel_bytes = entry.kernel_bytes.max(found.kernel_bytes);
        if found.drift_bytes() > entry.drift_bytes {
            entry.drift_bytes = found.drift_bytes();
            entry.worst_ns = Some(moment.at.0);
            (entry.missing, entry.extra) = found.describe(&world.files);
        }
        if untraced.drift_bytes() > entry.untraced_bytes {
            entry.untraced_bytes = untraced.drift_bytes();
            let ranges = untraced.differences.iter();
            entry.untraced = ranges.filter_map(|d| d.describe(&world.files)).collect();
        }
    }

    fn space_end(&mut self, _world: &World, moment: &Moment, _how: SpaceEnd) {
        self.vouched.remove(&moment.space);
    }
}

/// A run of pages on which the two sides differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where.
    pub range: Range,
    /// What the kernel shows, clipped to `range`.
    pub kernel: Option<Region>,
    /// What the model has, clipped to `range`.
    pub model: Option<Region>,
}

/// How a space differs from a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Unexplained, ascending.
    pub differences: Vec<Difference>,
    /// Explained: stacks that the kernel grew.
    pub kernel_bytes: u64,
}

impl Comparison {
    /// Unexplained bytes.
    #[must_use]
    pub fn drift_bytes(&self) -> u64 {
        self.differences.iter().map(|d| d.range.len()).sum()
    }

    /// Where the kernel has something and the model nothing.
    pub fn missing_ranges(&self) -> impl Iterator<Item = Range> {
        self.differences
            .iter()
            .filter(|d| d.model.is_none())
            .map(|d| d.range)
    }

    /// Where the model has something and the kernel nothing.
    pub fn extra_ranges(&self) -> impl Iterator<Item = Range> {
        self.differences
            .iter()
            .filter(|d| d.kernel.is_none())
            .map(|d| d.range)
    }

    /// By how much the kernel has more than the model, mapped and accessible, in bytes.
    pub(crate) fn more_in_kernel(&self) -> (i64, i64) {
        let grown = self.kernel_bytes as i64;
        let (mut reserved, mut committed) = (grown, grown);
        for difference in &self.differences {
            for (side, sign) in [(difference.kernel, 1), (difference.model, -1)] {
                let bytes = side.map_or(0, |region| region.len() as i64) * sign;
                reserved += bytes;
                if side.is_some_and(|region| region.perms.accessible()) {
                    committed += bytes;
                }
            }
        }
        (reserved, committed)
    }

    /// Takes out what calls in flight explain, and returns how many calls did.
    pub(crate) fn forgive(&mut self, in_flight: &[CallEvent]) -> u64 {
        let mut forgiven = 0;
        for event in in_flight {
            let before = self.drift_bytes();
            for range in calls::ranges(event) {
                self.differences = std::mem::take(&mut self.differences)
                    .into_iter()
                    .flat_map(|d| d.without(range))
                    .collect();
            }
            forgiven += u64::from(self.drift_bytes() < before);
        }
        forgiven
    }

    /// Takes out what untraced threads may have changed: all that the log does not vouch for.
    fn take_untraced(&mut self, vouched: &Vouched) -> Comparison {
        let mut untraced = Comparison::default();
        for difference in std::mem::take(&mut self.differences) {
            let Range { mut start, end } = difference.range;
            for known in vouched.within(difference.range) {
                let below = Range {
                    start,
                    end: known.start,
                };
                untraced.differences.extend(difference.clipped(below));
                self.differences.extend(difference.clipped(known));
                start = known.end;
            }
            let rest = Range { start, end };
            untraced.differences.extend(difference.clipped(rest));
        }
        untraced
    }

    /// As ranges to print: what the kernel has, and what only the model has.
    fn describe(&self, files: &Files) -> (Vec<DriftRange>, Vec<DriftRange>) {
        let (in_kernel, in_model): (Vec<&Difference>, _) =
            self.differences.iter().partition(|d| d.kernel.is_some());
        let described = |differences: Vec<&Difference>| {
            let ranges = differences.into_iter();
            ranges.filter_map(|d| d.describe(files)).collect()
        };
        (described(in_kernel), described(in_model))
    }
}

impl Difference {
    /// As a range to print.
    fn describe(&self, files: &Files) -> Option<DriftRange> {
        Some(DriftRange {
            start: self.range.start,
            end: self.range.end,
            perms: self.kernel.or(self.model)?.perms,
            kernel: self.kernel.map(|r| line(&r, files)),
            model: self.model.map(|r| line(&r, files)),
        })
    }

    /// The parts of it outside `range`.
    fn without(self, range: Range) -> impl Iterator<Item = Difference> {
        let below = Range {
            end: range.start,
            ..self.range
        };
        let above = Range {
            start: range.end,
            ..self.range
        };
        let outside = [below, above]
            .into_iter()
            .filter_map(move |side| self.clipped(side));
        let apart = self.range.intersect(range).is_none();
        apart
            .then_some(self)
            .into_iter()
            .chain(outside.filter(move |_| !apart))
    }

    fn clipped(self, range: Range) -> Option<Difference> {
        let range = self.range.intersect(range)?;
        Some(Difference {
            range,
            kernel: self.kernel.and_then(|r| r.clipped(range)),
            model: self.model.and_then(|r| r.clipped(range)),
        })
    }
}

/// A line of maps without its range.
fn line(region: &Region, files: &Files) -> String {
    let (dev, inode, path) = files.info(region.file).map_or(((0, 0), 0, ""), |info| {
        (info.dev, info.inode, info.path.as_str())
    });
    let text = format!(
        "{} {:08x} {:02x}:{:02x} {inode} {path}",
        region.perms, region.offset, dev.0, dev.1
    );
    text.trim_end().to_owned()
}

/// Compares a space with the kernel's list, page by page. Where neighbours are apart on one side and
/// joined on the other is no difference: only what a page shows counts.
#[must_use]
pub fn compare(space: &Space, checkpoint: &Checkpoint, files: &Files) -> Comparison {
    let user = Range {
        start: Addr(0),
        end: USER_END,
    };
    let mut kernel = checkpoint
        .vmas
        .iter()
        .filter_map(|vma| Region::shown(vma, BirthId::PRE_EXISTING, files).clipped(user))
        .peekable();
    let mut model = space.regions().copied().peekable();
    let mut found = Comparison::default();
    let mut at = Addr(0);
    loop {
        // What each side has from `at` on, and how far the next border is.
        while kernel.next_if(|r| r.range.end <= at).is_some() {}
        while model.next_if(|r| r.range.end <= at).is_some() {}
        let (k, m) = (kernel.peek().copied(), model.peek().copied());
        let border = |r: &Region| {
            if r.range.start > at {
                r.range.start
            } else {
                r.range.end
            }
        };
        let Some(end) = k.iter().chain(&m).map(border).min() else {
            break;
        };
        let here = Range { start: at, end };
        let difference = Difference {
            range: here,
            kernel: k.and_then(|r| r.clipped(here)),
            model: m.and_then(|r| r.clipped(here)),
        };
        at = end;
        match (difference.kernel, difference.model) {
            (None, None) => {}
            (Some(k), Some(m)) if k.same_at(&m, files) => {}
            (Some(k), None) if is_grown_stack(&k, m.as_ref(), space) => {
                found.kernel_bytes += here.len();
            }
            _ => found.push(difference, files),
        }
    }
    found
}

impl Comparison {
    /// Adds a difference, joined to the one below where they are one to a reader.
    fn push(&mut self, new: Difference, files: &Files) {
        let joins = |a: Option<Region>, b: Option<Region>| match (a, b) {
            (Some(a), Some(b)) => a.joins(&b, files),
            (None, None) => true,
            _ => false,
        };
        if let Some(last) = self.differences.last_mut()
            && last.range.end == new.range.start
            && joins(last.kernel, new.kernel)
            && joins(last.model, new.model)
        {
            last.range.end = new.range.end;
            for side in [&mut last.kernel, &mut last.model].into_iter().flatten() {
                side.range.end = new.range.end;
            }
            return;
        }
        self.differences.push(new);
    }
}

/// Whether pages that only the kernel has lie right below a stack of the model's, or where a call cut
/// one off, and look like it. `above` is the model's next region.
fn is_grown_stack(kernel: &Region, above: Option<&Region>, space: &Space) -> bool {
    let below_stack = above.is_some_and(|above| {
        above.grows_down && above.range.start == kernel.range.end && above.perms == kernel.perms
    });
    let below_cut = || {
        space
            .stubs()
            .iter()
            .any(|stub| stub.end == kernel.range.end && stub.perms == kernel.perms)
    };
    !kernel.backed && (below_stack || below_cut())
}
