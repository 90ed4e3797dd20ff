//! The address spaces at an instant, with each range's birth; and what changed between two instants.

use maptrail_tracelog::record::SpaceEnd;
use maptrail_tracelog::types::{Addr, Nanos, Pid, Range, SpaceId};

use crate::Error;
use crate::births::Birth;
use crate::observer::{Moment, Observer};
use crate::region::{BirthId, Region};
use crate::replay::replay;
use crate::space::Space;
use crate::timeline::Source;
use crate::world::World;

/// A region with what is known of its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The region.
    pub region: Region,
    /// The call that made it; `None` for memory that was there before the window.
    pub birth: Option<Birth>,
}

/// A space's regions at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceMaps {
    /// Which space.
    pub space: SpaceId,
    /// The process that it was first seen in.
    pub pid: Pid,
    /// When.
    pub at: Nanos,
    /// Its regions, ascending. Neighbours of different births are apart even if maps joins them.
    pub regions: Vec<Mapped>,
    /// From `start_brk` to the end of the heap: what maps would call `[heap]`.
    pub heap: Range,
}

impl SpaceMaps {
    fn of(space: &Space, world: &World, at: Nanos) -> SpaceMaps {
        SpaceMaps {
            space: space.id(),
            pid: world.space_info(space.id()).map_or(Pid(0), |info| info.pid),
            at,
            regions: space
                .regions()
                .map(|region| Mapped {
                    region: *region,
                    birth: world.births.get(region.birth).copied(),
                })
                .collect(),
            heap: space.heap(),
        }
    }
}

/// The spaces at `at`, by id; without a time, each as it was at its own end. `only` leaves out others.
///
/// # Errors
/// Those of reading the log, or a time past its end.
pub fn maps_at(
    source: &mut impl Source,
    at: Option<Nanos>,
    only: Option<SpaceId>,
) -> Result<(Vec<SpaceMaps>, World), Error> {
    let Some(at) = at else {
        let mut ends = Ends {
            only,
            spaces: Vec::new(),
        };
        let world = replay(source, &mut ends)?;
        ends.spaces.sort_by_key(|maps| maps.space);
        return Ok((ends.spaces, world));
    };
    let world = world_at(source, at)?;
    let maps = world
        .spaces()
        .filter(|space| only.is_none_or(|id| id == space.id()))
        .map(|space| SpaceMaps::of(space, &world, at))
        .collect();
    Ok((maps, world))
}

/// Everything that the log has told up to and including `at`.
///
/// # Errors
/// Those of reading the log, or a time past its end.
pub fn world_at(source: &mut impl Source, at: Nanos) -> Result<World, Error> {
    let window = source.last();
    if at > window {
        return Err(Error::OutsideWindow { at, window });
    }
    replay(source, &mut Until(at))
}

/// Sees nothing, and stops after an instant.
struct Until(Nanos);

impl Observer for Until {
    fn is_done(&self, at: Nanos) -> bool {
        at > self.0
    }
}

/// Keeps each space as it was at its end.
struct Ends {
    only: Option<SpaceId>,
    spaces: Vec<SpaceMaps>,
}

impl Observer for Ends {
    fn space_end(&mut self, world: &World, moment: &Moment, _how: SpaceEnd) {
        if self.only.is_none_or(|id| id == moment.space)
            && let Some(space) = world.space(moment.space)
        {
            self.spaces.push(SpaceMaps::of(space, world, moment.at));
        }
    }
}

/// What became of a range between two instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which space.
    pub space: SpaceId,
    /// Where.
    pub range: Range,
    /// What was there; `None` if nothing.
    pub before: Option<Mapped>,
    /// What is there; `None` if nothing.
    pub after: Option<Mapped>,
}

/// What differs between `from` and `to`, by space and address: ranges that appeared, went, were
/// replaced by another call's, or changed attributes.
///
/// # Errors
/// Those of reading the log, or a time past its end.
pub fn diff(
    source: &mut impl Source,
    from: Nanos,
    to: Nanos,
) -> Result<(Vec<Change>, World), Error> {
    let (before, _) = maps_at(source, Some(from), None)?;
    let (after, world) = maps_at(source, Some(to), None)?;
    let mut ids: Vec<SpaceId> = before.iter().chain(&after).map(|maps| maps.space).collect();
    ids.sort_unstable();
    ids.dedup();
    let regions = |all: &[SpaceMaps], id| -> Vec<Mapped> {
        all.iter()
            .find(|maps| maps.space == id)
            .map(|maps| maps.regions.clone())
            .unwrap_or_default()
    };
    let changes = ids
        .into_iter()
        .flat_map(|id| space_diff(id, &regions(&before, id), &regions(&after, id)))
        .collect();
    Ok((changes, world))
}

fn space_diff(space: SpaceId, before: &[Mapped], after: &[Mapped]) -> Vec<Change> {
    let mut before = before.iter().copied().peekable();
    let mut after = after.iter().copied().peekable();
    let mut changes = Vec::new();
    let mut at = Addr(0);
    loop {
        while before.next_if(|m| m.region.range.end <= at).is_some() {}
        while after.next_if(|m| m.region.range.end <= at).is_some() {}
        let (b, a) = (before.peek().copied(), after.peek().copied());
        let border = |m: &Mapped| {
            let range = m.region.range;
            if range.start > at {
                range.start
            } else {
                range.end
            }
        };
        let Some(end) = b.iter().chain(&a).map(border).min() else {
            return changes;
        };
        let range = Range { start: at, end };
        at = end;
        let part = |m: Mapped| {
            Some(Mapped {
                region: m.region.clipped(range)?,
                ..m
            })
        };
        let (before, after) = (b.and_then(part), a.and_then(part));
        if !is_same(before, after) {
            changes.push(Change {
                space,
                range,
                before,
                after,
            });
        }
    }
}

/// Ids of births are given out again, so the call's stamp decides.
fn is_same(before: Option<Mapped>, after: Option<Mapped>) -> bool {
    let stamp = |m: &Mapped| m.birth.map(|b| b.stamp);
    match (before, after) {
        (None, None) => true,
        (Some(b), Some(a)) => {
            let plain = |m: Mapped| Region {
                birth: BirthId::PRE_EXISTING,
                ..m.region
            };
            stamp(&b) == stamp(&a) && plain(b) == plain(a)
        }
        _ => false,
    }
}
