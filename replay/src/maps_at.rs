//! The address spaces at an instant, with each range's birth.

use maptrail_tracelog::record::SpaceEnd;
use maptrail_tracelog::types::{Nanos, Pid, Range, SpaceId};

use crate::Error;
use crate::births::Birth;
use crate::observer::{Moment, Observer};
use crate::region::Region;
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
fn world_at(source: &mut impl Source, at: Nanos) -> Result<World, Error> {
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
