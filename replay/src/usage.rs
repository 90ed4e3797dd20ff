//! `timeline`: reserved, committed and resident bytes over time, in all and per space, and what the
//! greatest stacks hold.
//!
//! The three sizes are different things: *reserved* is what is mapped, *committed* what of it is
//! accessible, both by the model; *resident* is what is in RAM, by the kernel's counters.

use std::collections::BTreeMap;

use maptrail_tracelog::record::{Body, Record, SpaceEnd};
use maptrail_tracelog::types::{Nanos, Pid, SpaceId, StackId};
use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::Error;
use crate::observer::{Judged, Moment, Observer};
use crate::op::Delta;
use crate::region::Region;
use crate::replay::replay;
use crate::series::{Buckets, Series};
use crate::timeline::Source;
use crate::world::World;

/// Sizes at an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Mapped, bytes.
    pub reserved_bytes: u64,
    /// Mapped and accessible, bytes.
    pub committed_bytes: u64,
    /// In RAM, bytes; of all spaces together, those that are known. `None` where none is: before the
    /// first sample, and after the end.
    pub resident_bytes: Option<u64>,
}

/// A space over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpaceUsage {
    /// Which space.
    pub space: SpaceId,
    /// The process that it was first seen in.
    pub pid: Pid,
    /// At the end of each bucket.
    pub points: Points,
}

/// Sizes at the end of each bucket, worked out when they are asked for: most are what they were before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Points {
    sizes: SizeSeries,
    count: u32,
}

impl Points {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Sizes> {
        self.sizes.points(self.count)
    }
}

impl Serialize for Points {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(self.iter())
    }
}

/// What a stack holds over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StackUsage {
    /// Which stack.
    pub stack: StackId,
    /// Bytes that it made and that are mapped, at the end of each bucket.
    pub held_bytes: Vec<u64>,
    /// The greatest of these.
    pub peak_bytes: u64,
}

/// Sizes over a window. When all programs have ended, the last point says how things stood right before
/// that: an end is no release.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// The window's length, seconds.
    pub window_s: f64,
    /// Seconds between points.
    pub step_s: f64,
    /// What there was at the first checkpoint; in RAM, at the first sample.
    pub start: Sizes,
    /// All spaces together, at the end of each bucket.
    pub points: Vec<Sizes>,
    /// Greatest at any instant, not only at a bucket's end. Resident as sampled.
    pub peak: Sizes,
    /// Whether any resident size was sampled.
    pub has_resident: bool,
    /// By id; of many, those that had most accessible.
    pub spaces: Vec<SpaceUsage>,
    /// How many others there were.
    pub spaces_left_out: u64,
    /// The greatest by peak, first the greatest.
    pub stacks: Vec<StackUsage>,
}

/// Replays a log into at most `points` points and the `top` greatest stacks.
///
/// # Errors
/// Those of reading the log.
pub fn usage(source: &mut impl Source, points: u32, top: usize) -> Result<(Usage, World), Error> {
    let mut meter = Meter::new(source.last(), points);
    let world = replay(source, &mut meter)?;
    Ok((meter.finish(top, &world), world))
}

/// The three sizes of a space, or of all, as series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SizeSeries {
    reserved: Series,
    committed: Series,
    resident: Series<Option<u64>>,
}

impl SizeSeries {
    fn set(&mut self, bucket: u32, sizes: Sizes) {
        self.reserved.set(bucket, sizes.reserved_bytes);
        self.committed.set(bucket, sizes.committed_bytes);
        self.resident.set(bucket, sizes.resident_bytes);
    }

    fn points(&self, count: u32) -> impl Iterator<Item = Sizes> {
        self.reserved
            .values(0..count)
            .zip(self.committed.values(0..count))
            .zip(self.resident.values(0..count))
            .map(
                |((reserved_bytes, committed_bytes), resident_bytes)| Sizes {
                    reserved_bytes,
                    committed_bytes,
                    resident_bytes,
                },
            )
    }
}

/// What a stack holds now, and held.
#[derive(Clone, Debug, Default)]
struct Held {
    bytes: u64,
    peak: u64,
    series: Series,
}

/// A space that has ended, with what each stack held in it.
#[derive(Clone, Debug)]
struct Ended {
    space: SpaceId,
    at: Nanos,
    held: Vec<(StackId, u64)>,
}

/// Spaces that are told apart, at most. A build runs many thousands of programs.
const MAX_SPACES: usize = 256;

/// One space's sizes, and the most that was accessible in it.
#[derive(Clone, Debug, Default)]
struct SpaceSizes {
    series: SizeSeries,
    peak_bytes: u64,
}

/// The observer behind [`usage`].
#[derive(Debug)]
pub struct Meter {
    last: Nanos,
    buckets: Buckets,
    now: BTreeMap<SpaceId, Sizes>,
    total_now: Sizes,
    /// Spaces whose resident size is known.
    sampled: usize,
    /// The space that was the last to end, as long as none follows it.
    ended: Option<Ended>,
    start: Option<Sizes>,
    peak: Sizes,
    has_resident: bool,
    total: SizeSeries,
    spaces: BTreeMap<SpaceId, SpaceSizes>,
    spaces_left_out: u64,
    stacks: FxHashMap<StackId, Held>,
}

impl Meter {
    /// For a window of this length.
    #[must_use]
    pub fn new(last: Nanos, points: u32) -> Meter {
        Meter {
            last,
            buckets: Buckets::new(last, points),
            now: BTreeMap::new(),
            total_now: Sizes::default(),
            sampled: 0,
            ended: None,
            start: None,
            peak: Sizes::default(),
            has_resident: false,
            total: SizeSeries::default(),
            spaces: BTreeMap::new(),
            spaces_left_out: 0,
            stacks: FxHashMap::default(),
        }
    }

    /// The result, when the replay is over.
    #[must_use]
    pub fn finish(mut self, top: usize, world: &World) -> Usage {
        self.now.clear();
        self.leave_out_least();
        let count = self.buckets.count();
        let mut stacks: Vec<(StackId, Held)> = self.stacks.into_iter().collect();
        stacks.sort_by_key(|(stack, held)| (std::cmp::Reverse(held.peak), *stack));
        stacks.truncate(top);
        Usage {
            window_s: self.last.as_secs_f64(),
            step_s: Nanos(self.buckets.width_ns()).as_secs_f64(),
            start: self.start.unwrap_or_default(),
            points: self.total.points(count).collect(),
            peak: self.peak,
            has_resident: self.has_resident,
            spaces: self
                .spaces
                .into_iter()
                .map(|(id, sizes)| SpaceUsage {
                    space: id,
                    pid: world.space_info(id).map_or(Pid(0), |info| info.pid),
                    points: Points {
                        sizes: sizes.series,
                        count,
                    },
                })
                .collect(),
            spaces_left_out: self.spaces_left_out,
            stacks: stacks
                .into_iter()
                .map(|(stack, held)| StackUsage {
                    stack,
                    held_bytes: held.series.values(0..count).collect(),
                    peak_bytes: held.peak,
                })
                .collect(),
        }
    }

    /// Space `id` has these sizes from `at` on.
    fn set(&mut self, id: SpaceId, at: Nanos, sizes: Sizes) {
        let old = self.now.insert(id, sizes).unwrap_or_default();
        let sum = |total: u64, old: u64, new: u64| total.saturating_sub(old).saturating_add(new);
        let total = &mut self.total_now;
        total.reserved_bytes = sum(
            total.reserved_bytes,
            old.reserved_bytes,
            sizes.reserved_bytes,
        );
        total.committed_bytes = sum(
            total.committed_bytes,
            old.committed_bytes,
            sizes.committed_bytes,
        );
        self.sampled += usize::from(sizes.resident_bytes.is_some());
        self.sampled -= usize::from(old.resident_bytes.is_some());
        let resident = sum(
            total.resident_bytes.unwrap_or(0),
            old.resident_bytes.unwrap_or(0),
            sizes.resident_bytes.unwrap_or(0),
        );
        total.resident_bytes = (self.sampled > 0).then_some(resident);
        let peak = &mut self.peak;
        peak.reserved_bytes = peak.reserved_bytes.max(total.reserved_bytes);
        peak.committed_bytes = peak.committed_bytes.max(total.committed_bytes);
        peak.resident_bytes = peak.resident_bytes.max(total.resident_bytes);
        let bucket = self.buckets.of(at);
        self.total.set(bucket, self.total_now);
        let space = self.spaces.entry(id).or_default();
        space.series.set(bucket, sizes);
        space.peak_bytes = space.peak_bytes.max(sizes.committed_bytes);
    }

    /// Keeps those spaces that are alive and the greatest of the others, [`MAX_SPACES`] in all.
    fn leave_out_least(&mut self) {
        let has_ended = |id: &SpaceId| !self.now.contains_key(id);
        let mut ended: Vec<(u64, SpaceId)> = (self.spaces.iter())
            .filter(|(id, _)| has_ended(id))
            .map(|(id, space)| (space.peak_bytes, *id))
            .collect();
        ended.sort_unstable_by_key(|(peak, id)| (std::cmp::Reverse(*peak), *id));
        let alive = self.spaces.len() - ended.len();
        for (_, id) in ended.iter().skip(MAX_SPACES.saturating_sub(alive)) {
            self.spaces.remove(id);
            self.spaces_left_out += 1;
        }
    }

    /// The stack of `region`'s birth holds more or less, if that call was made in this space.
    fn hold(
        &mut self,
        world: &World,
        moment: &Moment,
        region: &Region,
        change: impl Fn(u64) -> u64,
    ) {
        if let Some(stack) = holder(world, moment.space, region) {
            self.hold_stack(stack, moment.at, change);
        }
    }

    fn hold_stack(&mut self, stack: StackId, at: Nanos, change: impl Fn(u64) -> u64) {
        let held = self.stacks.entry(stack).or_default();
        held.bytes = change(held.bytes);
        held.peak = held.peak.max(held.bytes);
        held.series.set(self.buckets.of(at), held.bytes);
    }

    /// Something came after the end of the last space, which therefore was not the end of all.
    fn go_on(&mut self) {
        let Some(ended) = self.ended.take() else {
            return;
        };
        for (stack, bytes) in ended.held {
            self.hold_stack(stack, ended.at, |held| held.saturating_sub(bytes));
        }
        self.set(ended.space, ended.at, Sizes::default());
        self.now.remove(&ended.space);
        // Not at every end: to find the least takes time.
        if self.spaces.len().saturating_sub(self.now.len()) > 2 * MAX_SPACES {
            self.leave_out_least();
        }
    }
}

/// The stack of the call that made `region`, if that was made in `space`.
fn holder(world: &World, space: SpaceId, region: &Region) -> Option<StackId> {
    let birth = world.births.get(region.birth)?;
    (birth.space == space).then_some(birth.stack)
}

impl Observer for Meter {
    fn change(&mut self, world: &World, moment: &Moment, delta: &Delta) {
        self.go_on();
        match delta {
            Delta::Gained(r) | Delta::Restored(r) | Delta::Grown(r) => {
                self.hold(world, moment, r, |held| held.saturating_add(r.len()));
            }
            Delta::Released(r) => {
                self.hold(world, moment, r, |held| held.saturating_sub(r.len()));
            }
            Delta::Changed { .. } | Delta::Lifted(_) | Delta::Landed { .. } => {}
        }
        if let Some(space) = world.space(moment.space) {
            let sizes = Sizes {
                reserved_bytes: space.reserved_bytes(),
                committed_bytes: space.committed_bytes(),
                resident_bytes: self.now.get(&moment.space).and_then(|s| s.resident_bytes),
            };
            self.set(moment.space, moment.at, sizes);
        }
    }

    fn record(&mut self, _world: &World, record: &Record) {
        if let Body::Rss(id, rss) = &record.body {
            self.go_on();
            self.has_resident = true;
            let mut sizes = self.now.get(id).copied().unwrap_or_default();
            let bytes = rss.anon.saturating_add(rss.file).saturating_add(rss.shmem);
            sizes.resident_bytes = Some(bytes);
            self.set(*id, record.ns, sizes);
            if let Some(start) = &mut self.start {
                let resident = self.total_now.resident_bytes;
                start.resident_bytes = start.resident_bytes.or(resident);
            }
        }
    }

    fn checkpoint(&mut self, _world: &World, _moment: &Moment, _judged: &Judged<'_>) {
        self.start.get_or_insert(self.total_now);
    }

    fn space_end(&mut self, world: &World, moment: &Moment, how: SpaceEnd) {
        // A space that lives on when the window closes has its sizes to the last point.
        if how == SpaceEnd::Window {
            return;
        }
        self.go_on();
        let regions = world.space(moment.space).into_iter();
        let held = regions
            .flat_map(|space| space.everything())
            .filter_map(|region| Some((holder(world, moment.space, region)?, region.len())))
            .collect();
        self.ended = Some(Ended {
            space: moment.space,
            at: moment.at,
            held,
        });
        let is_last = self.now.keys().all(|id| *id == moment.space);
        if !is_last {
            self.go_on();
        }
    }
}
