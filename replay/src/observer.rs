//! What watches a replay: every view and every verdict is an [`Observer`] of the same single pass.

use maptrail_tracelog::record::{CallEvent, Checkpoint, Record, SpaceEnd};
use maptrail_tracelog::types::{Nanos, SpaceId, Stamp, ThreadIx};

use crate::op::Delta;
use crate::world::World;

/// Where a replay stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The stamp of the effect or record.
    pub stamp: Stamp,
    /// Its time.
    pub at: Nanos,
    /// The space it is about.
    pub space: SpaceId,
    /// Whose call it is; `None` for records.
    pub thread: Option<ThreadIx>,
}

/// A checkpoint, and the calls that the model and the kernel may see differently at that instant.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// What the kernel showed.
    pub checkpoint: &'a Checkpoint,
    /// The calls that were in flight, as far as the log has them, with their results.
    pub in_flight: &'a [CallEvent],
    /// The first one of its space: the model has just been made from it.
    pub first: bool,
}

/// Watches a replay. Every method does nothing unless it is overridden, and sees the world as it is
/// *after* the change that it is told of, with one exception: a birth whose last byte went is still
/// in the table.
pub trait Observer {
    /// A call, in effect order, told once: when it ends, or, if it only releases, at its entry. It
    /// comes before the changes that it makes at that stamp.
    fn event(&mut self, _world: &World, _event: &CallEvent) {}

    /// A space changed.
    fn change(&mut self, _world: &World, _moment: &Moment, _delta: &Delta) {}

    /// A record of any kind, after the model has taken it in.
    fn record(&mut self, _world: &World, _record: &Record) {}

    /// A checkpoint, after unfinished calls were settled.
    fn checkpoint(&mut self, _world: &World, _moment: &Moment, _judged: &Judged<'_>) {}

    /// A space is about to be dropped, with all that is mapped in it. Spaces that are alive when the
    /// window closes get it, too, with [`SpaceEnd::Window`], when the log has told all about them.
    fn space_end(&mut self, _world: &World, _moment: &Moment, _how: SpaceEnd) {}

    /// Nothing that happens at `at` or later is of interest: the replay ends here.
    fn is_done(&self, _at: Nanos) -> bool {
        false
    }
}

impl<A: Observer, B: Observer> Observer for (A, B) {
    fn event(&mut self, world: &World, event: &CallEvent) {
        self.0.event(world, event);
        self.1.event(world, event);
    }

    fn change(&mut self, world: &World, moment: &Moment, delta: &Delta) {
        self.0.change(world, moment, delta);
        self.1.change(world, moment, delta);
    }

    fn record(&mut self, world: &World, record: &Record) {
        self.0.record(world, record);
        self.1.record(world, record);
    }

    fn checkpoint(&mut self, world: &World, moment: &Moment, judged: &Judged<'_>) {
        self.0.checkpoint(world, moment, judged);
        self.1.checkpoint(world, moment, judged);
    }

    fn space_end(&mut self, world: &World, moment: &Moment, how: SpaceEnd) {
        self.0.space_end(world, moment, how);
        self.1.space_end(world, moment, how);
    }

    fn is_done(&self, at: Nanos) -> bool {
        self.0.is_done(at) && self.1.is_done(at)
    }
}

impl<O: Observer> Observer for &mut O {
    fn event(&mut self, world: &World, event: &CallEvent) {
        (**self).event(world, event);
    }

    fn change(&mut self, world: &World, moment: &Moment, delta: &Delta) {
        (**self).change(world, moment, delta);
    }

    fn record(&mut self, world: &World, record: &Record) {
        (**self).record(world, record);
    }

    fn checkpoint(&mut self, world: &World, moment: &Moment, judged: &Judged<'_>) {
        (**self).checkpoint(world, moment, judged);
    }

    fn space_end(&mut self, world: &World, moment: &Moment, how: SpaceEnd) {
        (**self).space_end(world, moment, how);
    }

    fn is_done(&self, at: Nanos) -> bool {
        (**self).is_done(at)
    }
}

/// Watches nothing.
impl Observer for () {}
