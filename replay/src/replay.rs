//! The one pass over a log: takes steps in order, keeps the [`World`], and tells the observer.

use maptrail_tracelog::calls::Effect;
use maptrail_tracelog::record::{
    Body, CallEvent, Checkpoint, Look, LookCause, Outcome, Record, SpaceEnd,
};
use maptrail_tracelog::types::{Addr, Nanos, Range, SpaceId, Stamp, ThreadIx};
use maptrail_tracelog::writer::Chunk;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::Error;
use crate::births::Birth;
use crate::calls;
use crate::observer::{Judged, Moment, Observer};
use crate::op::{Delta, Op};
use crate::region::{BirthId, Region};
use crate::settle;
use crate::space::{Space, USER_END};
use crate::timeline::{Source, Step, Timeline};
use crate::world::{Began, SpaceInfo, Thread, World};

/// Replays a whole log, or up to where the observer has seen enough, and returns the state there.
///
/// # Errors
/// Those of reading the log.
pub fn replay(source: &mut impl Source, observer: &mut impl Observer) -> Result<World, Error> {
    source.rewind();
    let mut replay = Replay::default();
    let mut timeline = Timeline::new();
    let mut chunk = Chunk::default();
    let mut go_on = true;
    while go_on && source.next_chunk(&mut chunk)? {
        let first = source.first_node();
        replay.world.nodes.append(first, &mut chunk.nodes);
        go_on = timeline.feed(&mut chunk, &mut |step| replay.step(step, observer));
    }
    if go_on && timeline.finish(&mut |step| replay.step(step, observer)) {
        replay.end(observer);
    }
    Ok(replay.world)
}

/// The driver's own state beside the world's.
#[derive(Debug, Default)]
struct Replay {
    world: World,
    /// Each thread's last call: a look may follow it.
    last_calls: FxHashMap<ThreadIx, LastCall>,
    /// Threads whose call was told at its entry.
    told: FxHashSet<ThreadIx>,
    /// Calls whose effect nobody saw, until a checkpoint of their space.
    unfinished: FxHashMap<SpaceId, Vec<CallEvent>>,
    deltas: Vec<Delta>,
}

/// What a look may come back to.
#[derive(Debug)]
struct LastCall {
    entry: Stamp,
    /// The call as a birth; its stamp is that of the exit.
    birth: Birth,
    /// If it is an `munmap`, what it released, by whom that was made: the recorder does not always wait
    /// for one to end, and SIGKILL may have come before.
    released: Vec<(Region, Option<Birth>)>,
}

impl LastCall {
    fn of(event: &CallEvent) -> LastCall {
        LastCall {
            entry: event.entry,
            birth: Birth::of(event),
            released: Vec::new(),
        }
    }

    /// The thread has made another call.
    fn becomes(&mut self, event: &CallEvent) {
        self.entry = event.entry;
        self.birth = Birth::of(event);
        self.released.clear();
    }

    /// Whether `look` came after it. A look after a call whose exit nobody saw may name the entry.
    fn is_meant_by(&self, look: &Look) -> bool {
        let is_it = self.birth.stamp == look.call || self.entry == look.call;
        is_it && self.birth.space == look.space
    }

    /// Whether memory that is found after it can be its work.
    fn makes(&self) -> bool {
        self.birth.call.effect() != Effect::Unmap
    }
}

impl Replay {
    fn step(&mut self, step: Step<'_>, observer: &mut impl Observer) -> bool {
        let at = match step {
            Step::Entry(event) => event.entry_ns,
            Step::Exit(event) => event.exit_ns,
            Step::Record(record, _) => record.ns,
        };
        if observer.is_done(at) {
            return false;
        }
        self.world.now = self.world.now.max(at);
        match step {
            Step::Entry(event) => self.entry(event, observer),
            Step::Exit(event) => self.exit(event, observer),
            Step::Record(record, in_flight) => self.record(record, in_flight, observer),
        }
        true
    }

    fn entry(&mut self, event: &CallEvent, observer: &mut impl Observer) {
        if calls::is_release(event, self.world.space(event.space)) {
            observer.event(&self.world, event);
            if calls::phases(event).exit {
                self.told.insert(event.thread);
            }
        }
        let moment = Moment {
            stamp: event.entry,
            at: event.entry_ns,
            space: event.space,
            thread: Some(event.thread),
        };
        let Some(space) = self.world.space(event.space) else {
            return;
        };
        let ops = calls::at_entry(event, space);
        for op in ops.into_iter().flatten() {
            self.perform(&moment, &op, observer);
            if event.call.effect() == Effect::Unmap {
                self.note_call(event);
            }
            self.reap();
        }
    }

    /// A look may follow this call; if it has just released something, to see whether it did.
    fn note_call(&mut self, event: &CallEvent) {
        let last = self
            .last_calls
            .entry(event.thread)
            .and_modify(|last| last.becomes(event))
            .or_insert_with(|| LastCall::of(event));
        // One that failed has not, and is told at its exit.
        if event.call.effect() != Effect::Unmap || event.outcome.value().is_none() {
            return;
        }
        for delta in &self.deltas {
            if let Delta::Released(region) = delta {
                let birth = self.world.births.get(region.birth).copied();
                last.released.push((*region, birth));
            }
        }
    }

    fn exit(&mut self, event: &CallEvent, observer: &mut impl Observer) {
        if !self.told.remove(&event.thread) {
            observer.event(&self.world, event);
        }
        if event.outcome == Outcome::Unfinished {
            let waiting = self.unfinished.entry(event.space).or_default();
            if event.call.effect() != Effect::Advise && waiting.len() < settle::MAX_CALLS {
                waiting.push(*event);
            }
            return;
        }
        self.note_call(event);
        if event.call.effect() == Effect::Advise || event.outcome.value().is_none() {
            return;
        }
        let moment = Moment {
            stamp: event.exit,
            at: event.exit_ns,
            space: event.space,
            thread: Some(event.thread),
        };
        let id = self.world.births.add(Birth::of(event));
        if let Some(op) = calls::at_exit(event, id, &self.world.files) {
            self.apply(&moment, &op, observer);
        }
        self.world.births.reap(id);
    }

    fn apply(&mut self, moment: &Moment, op: &Op<'_>, observer: &mut impl Observer) {
        self.perform(moment, op, observer);
        self.reap();
    }

    /// Drops the births whose last byte has just gone.
    fn reap(&mut self) {
        for delta in &self.deltas {
            if let Delta::Released(region) = delta {
                self.world.births.reap(region.birth);
            }
        }
    }

    /// Performs `op`, keeps the births, tells the observer.
    fn perform(&mut self, moment: &Moment, op: &Op<'_>, observer: &mut impl Observer) {
        self.deltas.clear();
        let world = &mut self.world;
        let Some(space) = world.spaces.get_mut(&moment.space) else {
            return;
        };
        space.apply(op, &world.files, &mut self.deltas);
        for delta in &self.deltas {
            match delta {
                Delta::Gained(r) => world.births.gain(r.birth, moment.space, r.len(), true),
                Delta::Grown(r) | Delta::Restored(r) => {
                    world.births.gain(r.birth, moment.space, r.len(), false)
                }
                Delta::Released(r) => world.births.release(r.birth, moment.space, r.len()),
                Delta::Changed { .. } | Delta::Lifted(_) | Delta::Landed { .. } => {}
            }
        }
        for delta in &self.deltas {
            observer.change(&self.world, moment, delta);
        }
    }

    fn record(&mut self, record: &Record, in_flight: &[CallEvent], observer: &mut impl Observer) {
        let world = &mut self.world;
        match &record.body {
            Body::SpaceStart {
                space,
                pid,
                origin,
                start_brk,
            } => {
                let info = SpaceInfo {
                    id: *space,
                    pid: *pid,
                    began: Began::from(origin),
                    start: record.ns,
                    end: None,
                    first_checkpoint: None,
                };
                self.space_start(info, *start_brk);
            }
            Body::SpaceEnd { space, how } => self.space_end(record, *space, *how, observer),
            Body::ThreadStart {
                thread,
                tid,
                pid,
                space,
                name,
            } => {
                let started = Thread {
                    tid: *tid,
                    pid: *pid,
                    space: *space,
                    name: name.clone(),
                    start: record.ns,
                    end: None,
                };
                world.threads.insert(*thread, started);
            }
            Body::ThreadEnd { thread, name, .. } => {
                if let Some(thread) = world.threads.get_mut(thread) {
                    thread.end = Some(record.ns);
                    if !name.is_empty() {
                        thread.name.clone_from(name);
                    }
                }
                self.last_calls.remove(thread);
            }
            Body::File(id, info) => world.files.define(*id, info.clone()),
            Body::Module(id, info) => {
                world.modules.insert(*id, info.clone());
            }
            Body::ModuleBase {
                space,
                module,
                bias,
            } => {
                world.biases.insert((*space, *module), *bias);
            }
            Body::Checkpoint(checkpoint) => {
                self.checkpoint(record, checkpoint, in_flight, observer);
            }
            Body::Look(look) => self.look(record, look, observer),
            Body::Lost { events, .. } => world.lost = world.lost.saturating_add(*events),
            Body::Summary(summary) => {
                world.lost = world.lost.max(summary.lost);
            }
            Body::Untraced(untraced) => world.untraced.push(untraced.clone()),
            Body::Rss(..) | Body::Residency(_) | Body::Note(_) | Body::Footprint(_) => {}
        }
        observer.record(&self.world, record);
    }

    fn space_start(&mut self, info: SpaceInfo, start_brk: Addr) {
        let world = &mut self.world;
        let parent = match info.began {
            Began::Fork { parent } => world.space(parent),
            Began::Exec | Began::Before => None,
        };
        let space = match parent {
            Some(parent) => parent.forked(info.id, start_brk),
            None => Space::new(info.id, start_brk),
        };
        for region in space.regions() {
            world
                .births
                .gain(region.birth, info.id, region.len(), false);
        }
        world.spaces.insert(info.id, space);
        world.space_infos.insert(info.id, info);
    }

    fn space_end(
        &mut self,
        record: &Record,
        id: SpaceId,
        how: SpaceEnd,
        observer: &mut impl Observer,
    ) {
        let moment = Moment {
            stamp: record.stamp,
            at: record.ns,
            space: id,
            thread: None,
        };
        if self.world.space(id).is_none() {
            return;
        }
        if let Some(info) = self.world.space_infos.get_mut(&id) {
            info.end = Some((record.ns, how));
        }
        // It lives on, and the log may have more to say of it: a process that was attached to is let go
        // before its pages are looked at.
        if how == SpaceEnd::Window {
            return;
        }
        observer.space_end(&self.world, &moment, how);
        let world = &mut self.world;
        self.unfinished.remove(&id);
        let space = world.spaces.remove(&id);
        for region in space.iter().flat_map(Space::everything) {
            world.births.release(region.birth, id, region.len());
            world.births.reap(region.birth);
        }
        world.biases.retain(|(space, _), _| *space != id);
    }

    fn checkpoint(
        &mut self,
        record: &Record,
        checkpoint: &Checkpoint,
        in_flight: &[CallEvent],
        observer: &mut impl Observer,
    ) {
        let id = checkpoint.space;
        let moment = Moment {
            stamp: record.stamp,
            at: record.ns,
            space: id,
            thread: None,
        };
        let first = match self.world.space_infos.get_mut(&id) {
            Some(info) => {
                let first = info.first_checkpoint.is_none();
                info.first_checkpoint.get_or_insert(record.stamp);
                first
            }
            None => return,
        };
        if first {
            let seed = Op::Look {
                range: Range {
                    start: Addr(0),
                    end: USER_END,
                },
                vmas: &checkpoint.vmas,
                birth: BirthId::PRE_EXISTING,
                reborn: false,
            };
            self.apply(&moment, &seed, observer);
            let world = &mut self.world;
            if let Some(space) = world.spaces.get_mut(&id) {
                space.settle_brk(&checkpoint.vmas, &world.files);
            }
        } else if let Some(unfinished) = self.unfinished.remove(&id) {
            self.settle(&unfinished, checkpoint, observer);
        }
        let judged = Judged {
            checkpoint,
            in_flight,
            first,
        };
        observer.checkpoint(&self.world, &moment, &judged);
    }

    /// Calls that were never seen to end did what explains the checkpoint best.
    fn settle(
        &mut self,
        unfinished: &[CallEvent],
        checkpoint: &Checkpoint,
        observer: &mut impl Observer,
    ) {
        self.world.settled += unfinished.len() as u64;
        let Some(space) = self.world.space(checkpoint.space) else {
            return;
        };
        let acted = settle::likeliest(unfinished, space, checkpoint, &self.world.files);
        let moment = |event: &CallEvent| Moment {
            stamp: event.exit,
            at: event.exit_ns,
            space: event.space,
            thread: Some(event.thread),
        };
        for event in &acted {
            let Some(space) = self.world.space(event.space) else {
                return;
            };
            for op in calls::at_entry(event, space).into_iter().flatten() {
                self.apply(&moment(event), &op, observer);
            }
        }
        for event in &acted {
            let id = self.world.births.add(Birth::of(event));
            if let Some(op) = calls::at_exit(event, id, &self.world.files) {
                self.apply(&moment(event), &op, observer);
            }
            self.world.births.reap(id);
        }
    }

    fn look(&mut self, record: &Record, look: &Look, observer: &mut impl Observer) {
        let call = self
            .last_calls
            .iter_mut()
            .find(|(_, call)| call.is_meant_by(look));
        let moment = Moment {
            stamp: record.stamp,
            at: record.ns,
            space: look.space,
            thread: call.as_ref().map(|(thread, _)| **thread),
        };
        let maker = (call.as_ref()).and_then(|(_, call)| call.makes().then_some(call.birth));
        let released = call.map_or_else(Vec::new, |(_, call)| std::mem::take(&mut call.released));
        for (region, birth) in released {
            if let Some(part) = region.clipped(look.range) {
                self.restore(&moment, part, birth, observer);
            }
        }
        // The call may have made part of what is seen by its arguments already: one call, one birth.
        let known = self.world.space(look.space).and_then(|space| {
            space
                .touching(look.range)
                .map(|region| region.birth)
                .find(|id| {
                    self.world
                        .births
                        .get(*id)
                        .is_some_and(|b| maker.is_some_and(|maker| b.stamp == maker.stamp))
                })
        });
        let fresh = match (known, maker) {
            (None, Some(birth)) => Some(self.world.births.add(birth)),
            _ => None,
        };
        let op = Op::Look {
            range: look.range,
            vmas: &look.vmas,
            birth: known.or(fresh).unwrap_or(BirthId::PRE_EXISTING),
            reborn: look.cause == LookCause::Acquired,
        };
        self.apply(&moment, &op, observer);
        if let Some(id) = fresh {
            self.world.births.reap(id);
        }
        if look.cause != LookCause::Acquired {
            self.world.settled += 1;
        }
    }

    /// Takes back the release of a region that was born by this.
    fn restore(
        &mut self,
        moment: &Moment,
        mut region: Region,
        birth: Option<Birth>,
        observer: &mut impl Observer,
    ) {
        if let Some(birth) = birth {
            region.birth = self.world.births.revive(region.birth, birth);
        }
        self.apply(moment, &Op::Restore(region), observer);
        self.world.births.reap(region.birth);
    }

    /// The log ends: so does what is still alive, as far as the log knows.
    fn end(&mut self, observer: &mut impl Observer) {
        let alive: Vec<SpaceId> = self.world.spaces().map(Space::id).collect();
        for id in alive {
            let told = self.world.space_info(id).and_then(|info| info.end);
            let moment = Moment {
                stamp: Stamp(u64::MAX),
                at: told.map_or(self.world.now, |(at, _)| at),
                space: id,
                thread: None,
            };
            observer.space_end(&self.world, &moment, SpaceEnd::Window);
        }
    }
}

/// The first instant of every window.
pub const WINDOW_START: Nanos = Nanos(0);
