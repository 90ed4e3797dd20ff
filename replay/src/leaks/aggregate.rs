//! Counts, during the pass, what each subject maps, gives back and holds.
//!
//! Tallies are kept per space while the space lives, and folded into one row per subject when it
//! ends: what a program holds when it exits is judged by that program's own life.

use std::collections::hash_map::Entry;

use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{Body, Record, Residency, RssSample, SpaceEnd};
use maptrail_tracelog::types::{ModuleId, Nanos, SpaceId, StackId, Stamp};
use rustc_hash::FxHashMap;

use super::verdict::{self, PARTS, Startup, Survivors};
use super::{By, Growth, Leaks, Memory, Options, Row, Subject};
use crate::births::Birth;
use crate::check::compare;
use crate::observer::{Judged, Moment, Observer};
use crate::op::Delta;
use crate::region::{BirthId, Region};
use crate::residency::{self, Seen};
use crate::series::{Buckets, Series};
use crate::symbols::libraries;
// Numbers in a sentence, which is all that is known of views here.
use crate::views::text::{count, seconds};
use crate::world::{Began, World};

/// How finely time is cut for verdicts and growth.
const BUCKETS: u32 = 256;

/// What one subject did in one space.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub mapped_bytes: u64,
    pub mapped_calls: u64,
    pub released_bytes: u64,
    /// Held now.
    pub held_bytes: u64,
    /// Of these, accessible.
    pub committed_bytes: u64,
    /// Whether any of it ever was accessible.
    pub was_accessible: bool,
    /// What of it was looked at, and found; `None` if nobody looked.
    pub seen: Option<Seen>,
    /// When.
    seen_at: Stamp,
    pub first: Nanos,
    pub last: Nanos,
    pub held: Series,
    /// The call that was counted last.
    last_call: Stamp,
    sizes: Sample,
}

impl Tally {
    pub(super) fn first_bucket(&self, buckets: Buckets) -> u32 {
        buckets.of(self.first)
    }

    /// `region` is held from `bucket` on.
    fn hold(&mut self, region: &Region, bucket: u32) {
        self.held_bytes = self.held_bytes.saturating_add(region.len());
        if region.perms.accessible() {
            self.was_accessible = true;
            self.committed_bytes = self.committed_bytes.saturating_add(region.len());
        }
        self.held.set(bucket, self.held_bytes);
    }

    /// Whether every held byte was looked at, and none has contents in RAM or in swap.
    pub(super) fn is_untouched(&self) -> bool {
        self.seen.is_some_and(|seen| {
            seen.looked_at >= self.held_bytes && seen.resident == 0 && seen.swapped == 0
        })
    }
}

/// A sample of sizes, evenly spread over all that were seen, whose median stands for theirs.
#[derive(Clone, Debug, Default)]
struct Sample {
    sizes: Vec<u64>,
    /// Every `1 << shift`th is taken.
    shift: u32,
    seen: u64,
}

impl Sample {
    const MAX: usize = 64;

    fn add(&mut self, size: u64) {
        let is_taken = self.seen & ((1 << self.shift) - 1) == 0;
        self.seen += 1;
        if !is_taken {
            return;
        }
        if self.sizes.len() == Sample::MAX {
            let mut nth = 0;
            self.sizes.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
            self.shift += 1;
        }
        self.sizes.push(size);
    }

    fn median(&self) -> u64 {
        let mut sizes = self.sizes.clone();
        sizes.sort_unstable();
        sizes.get(sizes.len() / 2).copied().unwrap_or(0)
    }
}

/// A space's sizes when it was first seen, what came unseen, and what is known of its RAM.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    reserved_bytes: u64,
    committed_bytes: u64,
    /// By how much the kernel had more of both, when it was last asked.
    unseen: (i64, i64),
    /// First and last.
    resident: Option<(u64, u64)>,
    explained_resident_bytes: u64,
}

impl Start {
    /// The space has so much in RAM now. `exec` begins with a handful of pages: growth begins at 0
    /// there, not at the first sample, which comes when the program has been running for a while.
    fn sampled(&mut self, is_exec: bool, bytes: u64) {
        let at_first = if is_exec { 0 } else { bytes };
        let (first, _) = self.resident.unwrap_or((at_first, bytes));
        self.resident = Some((first, bytes));
    }
}

/// The observer behind [`super::leaks`].
#[derive(Debug)]
pub struct Aggregator {
    last: Nanos,
    options: Options,
    buckets: Buckets,
    tallies: FxHashMap<(SpaceId, Subject), Tally>,
    starts: FxHashMap<SpaceId, Start>,
    modules: FxHashMap<StackId, ModuleId>,
    growth: Growth,
    rows: FxHashMap<Subject, Row>,
}

impl Aggregator {
    /// For a window of this length.
    #[must_use]
    pub fn new(last: Nanos, options: Options) -> Aggregator {
        Aggregator {
            last,
            options,
            buckets: Buckets::new(last, BUCKETS),
            tallies: FxHashMap::default(),
            starts: FxHashMap::default(),
            modules: FxHashMap::default(),
            growth: Growth::default(),
            rows: FxHashMap::default(),
        }
    }

    /// The answer, when the replay is over.
    #[must_use]
    pub fn finish(self) -> Leaks {
        let mut growth = self.growth;
        // New pages that took the place of old ones are no growth: more than all of it is not explained.
        if growth.resident_bytes > 0 {
            let all = growth.resident_bytes.unsigned_abs();
            growth.explained_resident_bytes = growth.explained_resident_bytes.min(all);
        }
        let rows = self.rows.into_values().collect();
        Leaks::new(self.last.as_secs_f64(), growth, rows, self.options.top)
    }

    fn subject(&mut self, world: &World, birth: &Birth, region: &Region) -> Subject {
        match self.options.by {
            By::Stack => Subject::Stack(birth.stack),
            By::Thread => Subject::Thread(birth.thread),
            By::Module => Subject::Module(
                *self
                    .modules
                    .entry(birth.stack)
                    .or_insert_with(|| caller_module(world, birth.stack)),
            ),
            By::Kind => Subject::Kind(birth.call, memory(birth.call, region)),
        }
    }

    /// The tally of the call that `region` was born by, if it was born in this space.
    fn tally<'a>(
        &'a mut self,
        world: &World,
        space: SpaceId,
        region: &Region,
    ) -> Option<(&'a mut Tally, Birth)> {
        let birth = *world.births.get(region.birth)?;
        if birth.space != space {
            return None;
        }
        let subject = self.subject(world, &birth, region);
        let tally = match self.tallies.entry((space, subject)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Tally {
                first: birth.at,
                ..Tally::default()
            }),
        };
        Some((tally, birth))
    }

    /// Memory came: its call made it, or, `by_kernel`, that call's stack has grown.
    fn gained(&mut self, world: &World, moment: &Moment, region: &Region, by_kernel: bool) {
        let bucket = self.buckets.of(moment.at);
        let Some((tally, birth)) = self.tally(world, moment.space, region) else {
            return;
        };
        tally.mapped_bytes = tally.mapped_bytes.saturating_add(region.len());
        tally.hold(region, bucket);
        if !by_kernel && (tally.mapped_calls == 0 || tally.last_call != birth.stamp) {
            tally.last_call = birth.stamp;
            tally.mapped_calls += 1;
            tally.last = tally.last.max(birth.at);
            tally.sizes.add(birth.born_bytes);
        }
    }

    /// A release that was counted was not made.
    fn restored(&mut self, world: &World, moment: &Moment, region: &Region) {
        let bucket = self.buckets.of(moment.at);
        if let Some((tally, _)) = self.tally(world, moment.space, region) {
            tally.released_bytes = tally.released_bytes.saturating_sub(region.len());
            tally.hold(region, bucket);
        }
    }

    fn released(&mut self, world: &World, moment: &Moment, region: &Region) {
        let bucket = self.buckets.of(moment.at);
        let Some((tally, birth)) = self.tally(world, moment.space, region) else {
            return;
        };
        tally.released_bytes = tally.released_bytes.saturating_add(region.len());
        // What was there when somebody looked counts as looked at: for what stays, that is rather too
        // little than too much.
        if let Some(seen) = tally.seen.as_mut()
            && birth.stamp < tally.seen_at
        {
            seen.looked_at = seen.looked_at.saturating_sub(region.len());
        }
        tally.held_bytes = tally.held_bytes.saturating_sub(region.len());
        if region.perms.accessible() {
            tally.committed_bytes = tally.committed_bytes.saturating_sub(region.len());
        }
        tally.held.set(bucket, tally.held_bytes);
    }

    fn changed(&mut self, world: &World, moment: &Moment, before: &Region, after: &Region) {
        let (was, is) = (before.perms.accessible(), after.perms.accessible());
        if was == is {
            return;
        }
        let Some((tally, _)) = self.tally(world, moment.space, after) else {
            return;
        };
        tally.was_accessible |= is;
        tally.committed_bytes = if is {
            tally.committed_bytes.saturating_add(after.len())
        } else {
            tally.committed_bytes.saturating_sub(after.len())
        };
    }

    fn residency(&mut self, world: &World, at: Stamp, residency: &Residency) {
        let Some(space) = world.space(residency.space) else {
            return;
        };
        for ((id, _), tally) in &mut self.tallies {
            if *id == residency.space {
                tally.seen = None;
            }
        }
        let (mut resident, mut explained) = (0u64, 0u64);
        residency::by_region(space, residency, |region, seen| {
            resident = resident.saturating_add(seen.resident);
            if let Some((tally, _)) = self.tally(world, residency.space, region) {
                tally.seen = Some(tally.seen.unwrap_or_default().and(seen));
                tally.seen_at = at;
                explained = explained.saturating_add(seen.resident);
            }
        });
        let start = self.starts.entry(residency.space).or_default();
        start.explained_resident_bytes = explained;
        // What was seen page by page is in RAM, also where the kernel's counters lag behind.
        let last = start.resident.map_or(0, |(_, last)| last);
        start.sampled(is_exec(world, residency.space), resident.max(last));
    }

    fn rss(&mut self, world: &World, space: SpaceId, sample: &RssSample) {
        let bytes = sample
            .anon
            .saturating_add(sample.file)
            .saturating_add(sample.shmem);
        let start = self.starts.entry(space).or_default();
        start.sampled(is_exec(world, space), bytes);
    }

    /// Folds the tallies of a space that ends into the rows.
    fn fold(&mut self, world: &World, moment: &Moment) {
        let Some(space) = world.space(moment.space) else {
            return;
        };
        if let Some(start) = self.starts.remove(&moment.space) {
            let growth = &mut self.growth;
            let more = |from: u64, to: u64| to.wrapping_sub(from) as i64;
            growth.reserved_bytes = growth
                .reserved_bytes
                .saturating_add(more(start.reserved_bytes, space.reserved_bytes()))
                .saturating_add(start.unseen.0);
            growth.committed_bytes = growth
                .committed_bytes
                .saturating_add(more(start.committed_bytes, space.committed_bytes()))
                .saturating_add(start.unseen.1);
            if let Some((first, last)) = start.resident {
                growth.resident_bytes = growth.resident_bytes.saturating_add(more(first, last));
            }
            growth.explained_resident_bytes = growth
                .explained_resident_bytes
                .saturating_add(start.explained_resident_bytes);
        }
        let mut survivors = self.survivors(world, moment);
        let end_bucket = self.buckets.of(moment.at);
        let start = world
            .space_info(moment.space)
            .filter(|info| info.began != Began::Before)
            .map(|info| info.start);
        let mut ended = Vec::new();
        self.tallies.retain(|(id, subject), tally| {
            if *id != moment.space {
                return true;
            }
            ended.push((*subject, std::mem::take(tally)));
            false
        });
        for (subject, tally) in ended {
            let held = survivors.remove(&subject).unwrap_or_default();
            let startup =
                start.map(|start| Startup::of(start, moment.at, is_loader(world, subject)));
            let (verdict, mut evidence) =
                verdict::judge(&tally, &held, self.buckets, end_bucket, startup);
            if held.young_mappings > 0 {
                let young = count(held.young_mappings);
                let age = seconds(self.options.min_age);
                evidence += &format!("; {young} younger than {age} left out");
            }
            let seen = |bytes: fn(Seen) -> u64| tally.seen.map(|seen| bytes(seen).min(held.bytes));
            let row = Row {
                subject,
                verdict,
                evidence,
                held_bytes: held.bytes,
                held_mappings: held.mappings,
                young_bytes: held.young_bytes,
                young_mappings: held.young_mappings,
                committed_bytes: tally.committed_bytes.min(held.bytes),
                looked_at_bytes: seen(|seen| seen.looked_at).unwrap_or(0),
                resident_bytes: seen(|seen| seen.resident),
                swapped_bytes: seen(|seen| seen.swapped).unwrap_or(0),
                mapped_bytes: tally.mapped_bytes,
                mapped_calls: tally.mapped_calls,
                released_bytes: tally.released_bytes,
                growth_bytes_per_min: slope(&tally, self.buckets, end_bucket),
                growth_span_s: Nanos(moment.at.0.saturating_sub(tally.first.0)).as_secs_f64(),
                first_s: tally.first.as_secs_f64(),
                last_s: tally.last.as_secs_f64(),
                median_bytes: tally.sizes.median(),
                spaces: 1,
                space: Some(moment.space),
            };
            match self.rows.entry(subject) {
                Entry::Occupied(entry) => merge(entry.into_mut(), row),
                Entry::Vacant(entry) => {
                    entry.insert(row);
                }
            }
        }
    }

    /// What each subject holds in the space at its end, by age.
    fn survivors(&mut self, world: &World, moment: &Moment) -> FxHashMap<Subject, Survivors> {
        let mut alive: Vec<(BirthId, Region)> = world
            .space(moment.space)
            .into_iter()
            .flat_map(|space| space.everything())
            .map(|region| (region.birth, *region))
            .collect();
        alive.sort_by_key(|(id, _)| *id);
        alive.dedup_by_key(|(id, _)| *id);
        let mut survivors: FxHashMap<Subject, Survivors> = FxHashMap::default();
        for (id, region) in alive {
            let Some(birth) = world.births.get(id).copied() else {
                continue;
            };
            let age = moment.at.0.saturating_sub(birth.at.0);
            if birth.space != moment.space {
                continue;
            }
            let subject = self.subject(world, &birth, &region);
            let Some(tally) = self.tallies.get(&(moment.space, subject)) else {
                continue;
            };
            let held = survivors.entry(subject).or_default();
            if age < self.options.min_age.0 {
                held.young_mappings += 1;
                held.young_bytes = held.young_bytes.saturating_add(birth.live_bytes);
                continue;
            }
            held.mappings += 1;
            held.bytes = held.bytes.saturating_add(birth.live_bytes);
            let since = u128::from(birth.at.0.saturating_sub(tally.first.0));
            let span = u128::from(moment.at.0.saturating_sub(tally.first.0)) + 1;
            let part = usize::try_from(since * PARTS as u128 / span).unwrap_or(PARTS);
            if let Some(count) = held.by_part.get_mut(part.min(PARTS - 1)) {
                *count += 1;
            }
        }
        survivors
    }
}

impl Observer for Aggregator {
    fn change(&mut self, world: &World, moment: &Moment, delta: &Delta) {
        match delta {
            Delta::Gained(region) => self.gained(world, moment, region, false),
            Delta::Grown(region) => self.gained(world, moment, region, true),
            Delta::Released(region) => self.released(world, moment, region),
            Delta::Restored(region) => self.restored(world, moment, region),
            Delta::Changed { before, after } => self.changed(world, moment, before, after),
            // A move neither makes nor gives back.
            Delta::Lifted(_) | Delta::Landed { .. } => {}
        }
    }

    fn checkpoint(&mut self, world: &World, moment: &Moment, judged: &Judged<'_>) {
        let Some(space) = world.space(moment.space) else {
            return;
        };
        let start = self.starts.entry(moment.space).or_default();
        if judged.first {
            start.reserved_bytes = space.reserved_bytes();
            start.committed_bytes = space.committed_bytes();
        } else {
            // What no call tells of is growth, too: threads that were not traced, stacks that grew.
            let mut unseen = compare(space, judged.checkpoint, &world.files);
            unseen.forgive(judged.in_flight);
            start.unseen = unseen.more_in_kernel();
        }
    }

    fn record(&mut self, world: &World, record: &Record) {
        match &record.body {
            Body::Rss(space, sample) => self.rss(world, *space, sample),
            Body::Residency(residency) => self.residency(world, record.stamp, residency),
            _ => {}
        }
    }

    fn space_end(&mut self, world: &World, moment: &Moment, _how: SpaceEnd) {
        self.fold(world, moment);
    }
}

/// Whether the space was born inside the window, by `exec`.
fn is_exec(world: &World, space: SpaceId) -> bool {
    world
        .space_info(space)
        .is_some_and(|info| info.began == Began::Exec)
}

/// Adds what the same subject did in another space. The worse verdict speaks for both, with its
/// evidence and its growth.
fn merge(row: &mut Row, other: Row) {
    let sum = u64::saturating_add;
    row.held_bytes = sum(row.held_bytes, other.held_bytes);
    row.held_mappings = sum(row.held_mappings, other.held_mappings);
    row.young_bytes = sum(row.young_bytes, other.young_bytes);
    row.young_mappings = sum(row.young_mappings, other.young_mappings);
    row.committed_bytes = sum(row.committed_bytes, other.committed_bytes);
    row.looked_at_bytes = sum(row.looked_at_bytes, other.looked_at_bytes);
    row.swapped_bytes = sum(row.swapped_bytes, other.swapped_bytes);
    row.resident_bytes = match (row.resident_bytes, other.resident_bytes) {
        (Some(a), Some(b)) => Some(sum(a, b)),
        (a, b) => a.or(b),
    };
    row.mapped_bytes = sum(row.mapped_bytes, other.mapped_bytes);
    row.mapped_calls = sum(row.mapped_calls, other.mapped_calls);
    row.released_bytes = sum(row.released_bytes, other.released_bytes);
    row.first_s = row.first_s.min(other.first_s);
    row.last_s = row.last_s.max(other.last_s);
    row.median_bytes = if other.mapped_calls > row.mapped_calls / 2 {
        other.median_bytes
    } else {
        row.median_bytes
    };
    row.spaces += other.spaces;
    row.space = None;
    match other.verdict.cmp(&row.verdict) {
        std::cmp::Ordering::Less => {
            row.verdict = other.verdict;
            row.evidence = other.evidence;
            row.growth_bytes_per_min = other.growth_bytes_per_min;
            row.growth_span_s = other.growth_span_s;
        }
        std::cmp::Ordering::Equal => {
            row.growth_bytes_per_min += other.growth_bytes_per_min;
            row.growth_span_s = row.growth_span_s.max(other.growth_span_s);
        }
        std::cmp::Ordering::Greater => {}
    }
}

/// Least squares of held bytes over time, from the first call to the end, in bytes a minute.
fn slope(tally: &Tally, buckets: Buckets, end: u32) -> f64 {
    let first = tally.first_bucket(buckets);
    let values: Vec<f64> = tally
        .held
        .values(first..end + 1)
        .map(|value| value as f64)
        .collect();
    let n = values.len() as f64;
    if values.len() < 2 {
        return 0.0;
    }
    let mean_x = (n - 1.0) / 2.0;
    let mean_y = values.iter().sum::<f64>() / n;
    let (mut xy, mut xx) = (0.0, 0.0);
    for (x, y) in (0u32..).zip(&values) {
        let dx = f64::from(x) - mean_x;
        xy += dx * (y - mean_y);
        xx += dx * dx;
    }
    xy / xx * 60e9 / buckets.width_ns() as f64
}

fn memory(call: Call, region: &Region) -> Memory {
    match call {
        Call::Brk => Memory::Heap,
        _ if region.perms.shared() => Memory::Shared,
        _ if region.backed => Memory::File,
        _ => Memory::Anonymous,
    }
}

/// The innermost module that is not the C library, which nearly every stack ends in.
fn caller_module(world: &World, stack: StackId) -> ModuleId {
    let frames = world.frames(stack);
    let is_libc = |id: ModuleId| libraries::is_libc(module_name(world, id));
    frames
        .iter()
        .map(|frame| frame.module)
        .find(|id| !is_libc(*id))
        .or(frames.first().map(|frame| frame.module))
        .unwrap_or_default()
}

/// The file name of a module, without its folder.
fn module_name(world: &World, id: ModuleId) -> &str {
    let path = world
        .module(id)
        .map_or("", |module| world.files.path(module.file));
    path.rsplit('/').next().unwrap_or(path)
}

/// Whether nobody called the loader: it runs by itself, before the program. A `dlopen` has its caller on
/// the stack.
fn is_loader(world: &World, subject: Subject) -> bool {
    let is_loader = |id| libraries::is_loader(module_name(world, id));
    match subject {
        Subject::Stack(stack) => {
            let frames = world.frames(stack);
            !frames.is_empty() && frames.iter().all(|frame| is_loader(frame.module))
        }
        Subject::Module(id) => is_loader(id),
        Subject::Thread(_) | Subject::Kind(..) => false,
    }
}
