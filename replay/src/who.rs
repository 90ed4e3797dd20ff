//! `who`: every call that touched an address, from the birth of what is mapped there to the end,
//! through all its moves.
//!
//! A first pass finds what is mapped there in the end, and where that was born; a second one goes
//! along with it from there.

use std::collections::{BTreeMap, VecDeque};

use maptrail_tracelog::calls::Effect;
use maptrail_tracelog::record::{Body, CallEvent, LookCause, Record, SpaceEnd};
use maptrail_tracelog::types::{Addr, Nanos, Range, SpaceId, Stamp};

use crate::Error;
use crate::births::Birth;
use crate::calls;
use crate::maps_at::Mapped;
use crate::observer::{Moment, Observer};
use crate::op::Delta;
use crate::replay::replay;
use crate::space::Space;
use crate::timeline::Source;
use crate::world::{Began, World};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// About which address.
    pub addr: Addr,
    /// As things stood then; without it, at each space's end.
    pub at: Option<Nanos>,
    /// In this space only.
    pub only: Option<SpaceId>,
    /// How many touches are told for each space, at most: of more, the first and the last ones.
    pub most: usize,
}

impl Question {
    /// All that is known of an address.
    #[must_use]
    pub fn about(addr: Addr) -> Question {
        Question {
            addr,
            at: None,
            only: None,
            most: usize::MAX,
        }
    }
}

/// The answer for one space.
#[derive(Clone, Debug, PartialEq)]
pub struct Who {
    /// Which space.
    pub space: SpaceId,
    /// What is mapped at the address at the time asked for (without one, at the space's end).
    pub now: Option<Mapped>,
    /// If nothing was mapped there up to that time, but later.
    pub later: Option<Later>,
    /// What touched it, in effect order, from the birth of `now`; or, if nothing is mapped there, all
    /// that ever did.
    pub touches: Vec<Touch>,
    /// How many were left out, in the middle of the touches.
    pub left_out: u64,
}

/// An address that was asked about too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    /// The time asked for.
    pub asked: Nanos,
    /// When it was first mapped.
    pub first: Nanos,
}

/// Something that touched the address, or the place where its memory was then.
#[derive(Clone, Debug, PartialEq)]
pub struct Touch {
    /// When it took effect.
    pub at: Nanos,
    /// Its stamp.
    pub stamp: Stamp,
    /// Where the memory that is asked for was at that time.
    pub addr: Addr,
    /// What touched it.
    pub what: What,
}

/// What can touch an address.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A call whose range it is in.
    Call(CallEvent),
    /// It was there when the space was first seen.
    PreExisting,
    /// The recorder looked at the range, after a call that its arguments do not settle.
    Look {
        /// Why.
        cause: LookCause,
        /// Whether anything was mapped there.
        mapped: bool,
    },
}

/// Answers for an address, in every space that had it mapped at any time up to the one asked for; if
/// there is none, in those that had it later.
///
/// # Errors
/// Those of reading the log, or a time past its end.
pub fn who(source: &mut impl Source, question: Question) -> Result<(Vec<Who>, World), Error> {
    let Question {
        addr,
        at,
        only,
        most,
    } = question;
    let window = source.last();
    if let Some(at) = at.filter(|at| *at > window) {
        return Err(Error::OutsideWindow { at, window });
    }
    let until = at.unwrap_or(Nanos(u64::MAX));
    let mut lives = Lives {
        addr,
        until,
        only,
        spaces: Vec::new(),
    };
    let world = replay(source, &mut lives)?;
    let stopped: Vec<SpaceId> = world.spaces().map(|space| space.id()).collect();
    for id in stopped {
        lives.take(&world, id);
    }
    if let Some(asked) = at
        && !lives.spaces.iter().any(|life| life.was_ever_mapped)
    {
        return later(source, &lives, asked);
    }
    let mut trails: Vec<Trail> = lives
        .spaces
        .iter()
        .filter(|life| life.was_ever_mapped)
        .map(|life| Trail::of(life, addr, most, &world))
        .collect();
    trails.sort_by_key(|trail| trail.who.space);
    let mut follower = Follower { trails, until };
    let world = replay(source, &mut follower)?;
    let answers = follower.trails.into_iter().map(Trail::end).collect();
    Ok((answers, world))
}

/// Answers for an address that no space had mapped up to `asked`.
fn later(
    source: &mut impl Source,
    lives: &Lives,
    asked: Nanos,
) -> Result<(Vec<Who>, World), Error> {
    let mut arrivals = Arrivals {
        addr: lives.addr,
        only: lives.only,
        first: BTreeMap::new(),
    };
    let world = replay(source, &mut arrivals)?;
    let answers = arrivals.first.into_iter().map(|(space, first)| Who {
        space,
        now: None,
        later: Some(Later { asked, first }),
        touches: Vec::new(),
        left_out: 0,
    });
    Ok((answers.collect(), world))
}

/// When each space first had the address.
struct Arrivals {
    addr: Addr,
    only: Option<SpaceId>,
    first: BTreeMap<SpaceId, Nanos>,
}

impl Observer for Arrivals {
    fn change(&mut self, _world: &World, moment: &Moment, delta: &Delta) {
        let is_asked = self.only.is_none_or(|id| id == moment.space);
        if is_asked && arrived(delta).is_some_and(|range| range.contains(self.addr)) {
            self.first.entry(moment.space).or_insert(moment.at);
        }
    }
}

/// The range that is mapped from now on.
fn arrived(delta: &Delta) -> Option<Range> {
    match delta {
        Delta::Gained(region)
        | Delta::Restored(region)
        | Delta::Grown(region)
        | Delta::Landed { region, .. } => Some(region.range),
        Delta::Released(_) | Delta::Changed { .. } | Delta::Lifted(_) => None,
    }
}

/// What a space had at the address, first pass.
#[derive(Clone, Copy, Debug)]
struct Life {
    space: SpaceId,
    now: Option<Mapped>,
    was_ever_mapped: bool,
    is_taken: bool,
}

/// First pass: what is at the address in the end.
struct Lives {
    addr: Addr,
    until: Nanos,
    only: Option<SpaceId>,
    spaces: Vec<Life>,
}

impl Lives {
    fn life(&mut self, space: SpaceId) -> Option<&mut Life> {
        if self.only.is_some_and(|id| id != space) {
            return None;
        }
        let at = match self.spaces.iter().position(|life| life.space == space) {
            Some(at) => at,
            None => {
                self.spaces.push(Life {
                    space,
                    now: None,
                    was_ever_mapped: false,
                    is_taken: false,
                });
                self.spaces.len() - 1
            }
        };
        self.spaces.get_mut(at)
    }

    /// Notes what is at the address, unless the space's end did so already.
    fn take(&mut self, world: &World, space: SpaceId) {
        let found = world.space(space).and_then(|s| s.find(self.addr)).copied();
        let Some(life) = self.life(space).filter(|life| !life.is_taken) else {
            return;
        };
        life.is_taken = true;
        life.was_ever_mapped |= found.is_some();
        life.now = found.map(|region| Mapped {
            region,
            birth: world.births.get(region.birth).copied(),
        });
    }
}

impl Observer for Lives {
    fn change(&mut self, _world: &World, moment: &Moment, delta: &Delta) {
        if arrived(delta).is_some_and(|range| range.contains(self.addr))
            && let Some(life) = self.life(moment.space)
        {
            life.was_ever_mapped = true;
        }
    }

    fn space_end(&mut self, world: &World, moment: &Moment, _how: SpaceEnd) {
        self.take(world, moment.space);
    }

    fn is_done(&self, at: Nanos) -> bool {
        at > self.until
    }
}

/// A space's answer in the making.
struct Trail {
    /// With the first half of the touches that are told.
    who: Who,
    /// The other half: the last so many.
    last: VecDeque<Touch>,
    /// How many touches are told.
    most: usize,
    /// Where the memory is that is asked for: at first where it was born, at last the address.
    at: Addr,
    /// The space and those it was forked from, each from a stamp on; ascending.
    lineage: Vec<(Stamp, SpaceId)>,
    /// Nothing before this is of interest: the birth of what is there now.
    since: Stamp,
}

impl Trail {
    fn of(life: &Life, addr: Addr, most: usize, world: &World) -> Trail {
        let birth = life.now.and_then(|now| now.birth);
        Trail {
            who: Who {
                space: life.space,
                now: life.now,
                later: None,
                touches: Vec::new(),
                left_out: 0,
            },
            last: VecDeque::new(),
            most,
            at: life.now.map_or(addr, |now| now.region.origin_of(addr)),
            lineage: lineage(life.space, world),
            since: birth.map_or(Stamp(0), |birth| birth.stamp),
        }
    }

    fn push(&mut self, touch: Touch) {
        let first = self.most.div_ceil(2);
        if self.who.touches.len() < first {
            self.who.touches.push(touch);
            return;
        }
        self.last.push_back(touch);
        if self.last.len() > self.most - first {
            self.last.pop_front();
            self.who.left_out += 1;
        }
    }

    fn end(mut self) -> Who {
        self.who.touches.extend(self.last);
        self.who
    }

    /// Whether it leads through `space` at that time.
    fn is_in(&self, space: SpaceId, stamp: Stamp) -> bool {
        stamp >= self.since && space_at(&self.lineage, stamp) == space
    }

    /// A piece of memory landed elsewhere: goes along if it is the one.
    fn follow(&mut self, birth: Option<&Birth>, from: Range, to: Addr) {
        let Some(now) = &self.who.now else { return };
        let stamp = |birth: &Birth| birth.stamp;
        if now.birth.as_ref().map(stamp) == birth.map(stamp) && from.contains(self.at) {
            self.at = Addr(to.0.saturating_add(self.at.0 - from.start.0));
        }
    }
}

/// A space and those it was forked from, by the stamp from which on each is meant.
fn lineage(space: SpaceId, world: &World) -> Vec<(Stamp, SpaceId)> {
    let mut lineage = Vec::new();
    let mut at = space;
    while let Some(info) = world.space_info(at) {
        match info.began {
            // A parent is older than its child; anything else comes from a damaged log.
            Began::Fork { parent } if parent < at => {
                lineage.push((info.first_checkpoint.unwrap_or_default(), at));
                at = parent;
            }
            _ => break,
        }
    }
    lineage.push((Stamp(0), at));
    lineage.reverse();
    lineage
}

fn space_at(lineage: &[(Stamp, SpaceId)], stamp: Stamp) -> SpaceId {
    let after = lineage.partition_point(|(from, _)| *from <= stamp);
    after
        .checked_sub(1)
        .and_then(|i| lineage.get(i))
        .map_or(SpaceId::default(), |(_, space)| *space)
}

/// Second pass: what touched those places.
struct Follower {
    trails: Vec<Trail>,
    until: Nanos,
}

impl Follower {
    fn touch(&mut self, space: SpaceId, at: Nanos, stamp: Stamp, ranges: &[Range], what: &What) {
        for trail in &mut self.trails {
            let addr = trail.at;
            if trail.is_in(space, stamp) && ranges.iter().any(|range| range.contains(addr)) {
                trail.push(Touch {
                    at,
                    stamp,
                    addr,
                    what: what.clone(),
                });
            }
        }
    }
}

impl Observer for Follower {
    fn event(&mut self, world: &World, event: &CallEvent) {
        let space = world.space(event.space);
        let (stamp, at) = if calls::is_release(event, space) {
            (event.entry, event.entry_ns)
        } else {
            (event.exit, event.exit_ns)
        };
        let mut ranges = calls::ranges(event);
        if event.call.effect() == Effect::Brk {
            // What a `brk` covers is told by where the heap ended before it.
            if let (Some(heap), Some(value)) = (space.map(Space::heap), event.outcome.value()) {
                let (a, b) = (heap.end.page_up(), Addr(value).page_up());
                ranges.push(Range {
                    start: a.min(b),
                    end: a.max(b),
                });
            }
        }
        self.touch(event.space, at, stamp, &ranges, &What::Call(*event));
    }

    fn change(&mut self, world: &World, moment: &Moment, delta: &Delta) {
        let Delta::Landed { from, region } = delta else {
            return;
        };
        let birth = world.births.get(region.birth);
        for trail in &mut self.trails {
            if trail.is_in(moment.space, moment.stamp) {
                trail.follow(birth, *from, region.range.start);
            }
        }
    }

    fn record(&mut self, world: &World, record: &Record) {
        match &record.body {
            Body::Checkpoint(checkpoint)
                if world
                    .space_info(checkpoint.space)
                    .is_some_and(|info| info.first_checkpoint == Some(record.stamp)) =>
            {
                let ranges: Vec<Range> = checkpoint.vmas.iter().map(|vma| vma.range).collect();
                let what = What::PreExisting;
                self.touch(checkpoint.space, record.ns, record.stamp, &ranges, &what);
            }
            Body::Look(look) => {
                let trail = self.trails.iter().find(|t| t.who.space == look.space);
                let Some(addr) = trail.map(|trail| trail.at) else {
                    return;
                };
                let what = What::Look {
                    cause: look.cause,
                    mapped: look.vmas.iter().any(|vma| vma.range.contains(addr)),
                };
                self.touch(look.space, record.ns, record.stamp, &[look.range], &what);
            }
            _ => {}
        }
    }

    fn is_done(&self, at: Nanos) -> bool {
        at > self.until
    }
}

impl Who {
    /// The call that made what is mapped there now.
    #[must_use]
    pub fn birth(&self) -> Option<&Birth> {
        self.now.as_ref()?.birth.as_ref()
    }
}
