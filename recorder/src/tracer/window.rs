//! The window: what is sampled in it, when it closes, and what is waited for then.
//!
//! After the window a seccomp target cannot be let go (its filter stays, and needs a tracer): the
//! tracer goes on without recording until the last thread is gone, which is called *pass-through*.

use std::time::Duration;

use maptrail_tracelog::record::{
    Body, Checkpoint, CheckpointReason, InFlight, Mechanism, Residency, Vma, WindowEnd,
};
use maptrail_tracelog::types::{SpaceId, Tid};
use rustc_hash::FxHashSet;

use super::calls::MUNMAP;
use super::leaving::Leaving;
use super::opening::{ENDED, GONE, Opening};
use super::state::Pending;
use super::{Stop, Stopped, Tracer};
use crate::patience::{PATIENCE, within};
use crate::perf_map;
use crate::proc;
use crate::residency;

/// How often the waiting tracer is woken to flush and to sample.
pub const TICK: Duration = Duration::from_millis(100);
/// RSS is sampled every so many ticks, and more rarely the more spaces there are: reading one
/// `status` takes about 20 µs, and sampling should cost at most a hundredth of a core.
const SAMPLE_TICKS: u64 = 2;
/// Threads of an attached process that nobody follows are looked for every so many ticks.
const THREADS_TICKS: u64 = 10;
/// How long a window that closes waits for calls in flight, nanoseconds.
const PATIENCE_NS: u64 = 200_000_000;
/// Longest look at the pages of one space that ends.
pub const PAGES_BUDGET: Duration = Duration::from_millis(250);

/// The same where others wait for that.
const SHORT_BUDGET: Duration = Duration::from_millis(5);

/// Where the window stands.
pub enum Window {
    /// The program has not started.
    Waiting,
    /// Taking up the threads of a program that runs.
    Opening(Opening),
    /// Recording.
    Open,
    /// Waiting for calls in flight before the last checkpoints.
    Closing(Closing),
    /// The last checkpoints are taken; the log is being completed.
    Leaving(Leaving),
    /// The log is complete.
    Closed,
}

/// A window that closes.
pub struct Closing {
    why: WindowEnd,
    since_ns: u64,
    /// Spaces that wait for their calls in flight. Threads that arrive at a call in them are held.
    waiting: FxHashSet<SpaceId>,
    held: Vec<Stopped>,
}

impl Closing {
    fn new(why: WindowEnd, since_ns: u64, waiting: FxHashSet<SpaceId>) -> Closing {
        Closing {
            why,
            since_ns,
            waiting,
            held: Vec::new(),
        }
    }
}

impl Tracer {
    /// Periodic work.
    pub(super) fn tick(&mut self) {
        self.report_if_written();
        self.follower.tick();
        self.count_mappings();
        let Some(journal) = &self.journal else {
            return;
        };
        let now = journal.now().0;
        if journal.due() {
            self.flush();
        }
        match &self.window {
            Window::Open => {
                self.sample_now_and_then();
                let length = self.task.limits.window_ns;
                if length.is_some_and(|length| now >= length) {
                    self.close_window(WindowEnd::Time);
                } else if let Some(which) = self.limit_reached() {
                    self.close_window(WindowEnd::Limit(which));
                }
            }
            Window::Leaving(_) => self.complete_if_looked(),
            Window::Closing(closing) if now.saturating_sub(closing.since_ns) > PATIENCE_NS => {
                self.finish_window();
            }
            _ => {}
        }
    }

    fn sample_now_and_then(&mut self) {
        self.ticks += 1;
        let every = SAMPLE_TICKS.max(self.spaces.len() as u64 / 5);
        if self.ticks.is_multiple_of(every) {
            self.sample();
        }
        if self.task.attached.is_some() && self.ticks.is_multiple_of(THREADS_TICKS) {
            self.look_for_threads();
        }
    }

    /// Samples the RAM of all spaces.
    pub(super) fn sample(&mut self) {
        let live: Vec<(SpaceId, Tid)> = self
            .spaces
            .keys()
            .filter_map(|id| Some((*id, self.a_thread_of(*id)?)))
            .collect();
        for (space, tid) in live {
            if let Ok(sample) = residency::rss(tid) {
                self.record(Body::Rss(space, sample));
            }
        }
    }

    /// Where many calls came since, the number of mappings may be far from what is thought.
    fn count_mappings(&mut self) {
        // Only where releases are told of before they are made does anybody ask.
        if self.task.mechanism != Mechanism::Seccomp {
            return;
        }
        let limit = self.max_mappings;
        for space in self.spaces.values_mut() {
            if space.fresh.is_stale(limit)
                && let Ok(vmas) = space.maps.all(&mut self.files)
            {
                space.fresh.recounted(vmas.len());
            }
        }
    }

    pub(super) fn a_thread_of(&self, space: SpaceId) -> Option<Tid> {
        let traced = self
            .threads
            .iter()
            .find(|(_, t)| t.space == Some(space) && !t.exiting)
            .map(|(tid, _)| *tid);
        traced.or_else(|| {
            let mut fellows = proc::threads_of(self.task.root).into_iter();
            fellows.find(|tid| self.has_unchosen(space) && !proc::is_dead(*tid))
        })
    }

    /// Memory calls of a space's threads that have not come back, or may not have.
    pub(super) fn calls_in_flight(&self, id: SpaceId) -> Vec<InFlight> {
        self.threads
            .iter()
            .filter(|(_, t)| t.space == Some(id))
            .filter_map(|(tid, t)| {
                let entry = match (&t.pending, t.unseen) {
                    (Some(Pending::Memory(call)), _) => call.entry,
                    (_, Some(unseen)) if proc::may_be_in_call(*tid, MUNMAP) => unseen.entry,
                    _ => return None,
                };
                Some(InFlight {
                    thread: t.ix,
                    entry,
                })
            })
            .collect()
    }

    /// Logs the kernel's maps of a space, and returns them.
    pub(super) fn checkpoint(
        &mut self,
        tid: Tid,
        id: SpaceId,
        reason: CheckpointReason,
        in_flight: Vec<InFlight>,
        held_ns: u64,
    ) -> Option<Vec<Vma>> {
        let space = self.spaces.get(&id)?;
        let vmas = space.maps.all(&mut self.files).ok()?;
        if vmas.is_empty() {
            return None;
        }
        if let Some(space) = self.spaces.get_mut(&id) {
            space.fresh.recounted(vmas.len());
        }
        if reason == CheckpointReason::Start {
            self.code_is_at(tid, id, &vmas);
        }
        self.stats.checkpoints += 1;
        self.define_new();
        self.record(Body::Checkpoint(Checkpoint {
            space: id,
            reason,
            vmas: vmas.clone(),
            in_flight,
            held_ns,
        }));
        Some(vmas)
    }

    /// The last checkpoint of a space that ends, and where its pages are.
    pub(super) fn last_look(&mut self, tid: Tid, id: SpaceId) {
        if self.journal.is_none() {
            return;
        }
        let reason = CheckpointReason::SpaceEnd;
        let vmas = self.checkpoint(tid, id, reason, Vec::new(), 0);
        if let Ok(sample) = residency::rss(tid) {
            self.record(Body::Rss(id, sample));
        }
        if let Some(place) = self.perf_map_place(tid, id) {
            let map = within(PATIENCE, move || place.open());
            self.perf_maps.extend(map.flatten());
        }
        // Those of a running program do not wait for a child's end.
        let budget = match self.task.attached {
            Some(_) => SHORT_BUDGET,
            None => PAGES_BUDGET,
        };
        if let Some(pages) = vmas.and_then(|vmas| resident_pages(tid, id, &vmas, budget)) {
            self.record(Body::Residency(pages));
        }
    }

    /// Where a just-in-time compiler of a space may have written down what its code is.
    pub(super) fn perf_map_place(&self, tid: Tid, id: SpaceId) -> Option<perf_map::Place> {
        let space = self.spaces.get(&id)?;
        let room = self.perf_maps.len() < perf_map::MOST;
        room.then(|| perf_map::Place::of(tid, id, &space.code))?
    }

    /// The program has ended; its children may go on.
    pub(super) fn root_ended(&mut self) {
        self.close_window(WindowEnd::ProgramEnded);
    }

    pub(super) fn close_window(&mut self, why: WindowEnd) {
        match self.window {
            Window::Open => {}
            // The program never ran.
            Window::Waiting => return self.finish_window(),
            Window::Opening(_) => return self.refuse(match why {
                WindowEnd::ProgramEnded => ENDED,
                WindowEnd::ThreadsEnded => GONE,
                WindowEnd::Asked => "maptrail was told to stop before the first call was recorded",
                _ => "the recorder stood still for a second or more while it took up the threads: try \
                      again when the machine is less busy",
            }),
            Window::Closing(_) | Window::Leaving(_) | Window::Closed => return,
        }
        let busy = |id: &&SpaceId| self.spaces.get(id).is_some_and(|s| s.in_flight > 0);
        let waiting: FxHashSet<SpaceId> = self.spaces.keys().filter(busy).copied().collect();
        let done = waiting.is_empty();
        self.window = Window::Closing(Closing::new(why, self.now().0, waiting));
        if done {
            self.finish_window();
        }
    }

    /// While the window closes, a thread that arrives at a memory call of a space with calls in
    /// flight is held there. Gives the stop back if it is not.
    pub(super) fn hold_if_closing(&mut self, stopped: Stopped, space: SpaceId) -> Option<Stopped> {
        match &mut self.window {
            Window::Closing(closing) if closing.waiting.contains(&space) => {}
            _ => return Some(stopped),
        }
        if self.take(&stopped) == Some(Stop::Exit) {
            let outcome = self.exiting(stopped);
            self.served(outcome);
        } else if let Window::Closing(closing) = &mut self.window {
            closing.held.push(stopped);
        }
        None
    }

    /// A call in flight came back, or its thread is gone.
    pub(super) fn space_settled(&mut self, id: SpaceId) {
        if self.spaces.get(&id).is_some_and(|s| s.in_flight == 0) {
            self.space_gone(id);
        }
    }

    /// Nothing is to be waited for in this space any more.
    pub(super) fn space_gone(&mut self, id: SpaceId) {
        let Window::Closing(closing) = &mut self.window else {
            return;
        };
        if closing.waiting.remove(&id) && closing.waiting.is_empty() {
            self.finish_window();
        }
    }

    /// The log cannot be written any more: the target goes on without it.
    pub(super) fn output_failed(&mut self, why: String) {
        if !matches!(self.window, Window::Leaving(_) | Window::Closed) {
            self.end_now(WindowEnd::Output(why));
        }
    }

    /// Takes the last checkpoints. No-op if that was done.
    pub(super) fn finish_window(&mut self) {
        match std::mem::replace(&mut self.window, Window::Waiting) {
            Window::Closing(closing) => {
                let held_ns = self.now().0.saturating_sub(closing.since_ns);
                self.end(closing.why, held_ns, closing.held);
            }
            done @ (Window::Leaving(_) | Window::Closed) => self.window = done,
            Window::Waiting | Window::Open => self.end(WindowEnd::ProgramEnded, 0, Vec::new()),
            opening @ Window::Opening(_) => {
                self.window = opening;
                self.refuse(ENDED);
            }
        }
    }

    fn end_now(&mut self, why: WindowEnd) {
        let (held_ns, held) = match std::mem::replace(&mut self.window, Window::Waiting) {
            Window::Closing(closing) => {
                let held_ns = self.now().0.saturating_sub(closing.since_ns);
                (held_ns, closing.held)
            }
            _ => (0, Vec::new()),
        };
        self.end(why, held_ns, held);
    }
}

fn resident_pages(tid: Tid, id: SpaceId, vmas: &[Vma], budget: Duration) -> Option<Residency> {
    let pagemap = residency::pagemap(tid).ok()?;
    residency::pages(&pagemap, id, vmas, budget).ok()
}
