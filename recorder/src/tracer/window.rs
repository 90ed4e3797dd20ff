//! The window: how it opens, what is sampled in it, how it closes, and what comes after.
//!
//! After the window a seccomp target cannot be let go (its filter stays, and needs a tracer): the
//! tracer goes on without recording until the last thread is gone, which is called *pass-through*.

use std::time::Duration;

use maptrail_tracelog::record::{
    Body, Checkpoint, CheckpointReason, InFlight, Residency, SpaceEnd, Summary, WindowEnd,
};
use maptrail_tracelog::types::{SpaceId, Tid};
use rustc_hash::FxHashSet;

use super::calls::MUNMAP;
use super::state::Pending;
use super::{Stopped, Tracer};
use crate::front::Report;
use crate::journal;
use crate::proc;
use crate::residency;
use crate::unwind::Unwinder;

/// How often the waiting tracer is woken to flush and to sample.
pub const TICK: Duration = Duration::from_millis(100);
/// RSS is sampled every so many ticks, and more rarely the more spaces there are: reading one
/// `status` takes about 20 µs, and sampling should cost at most a hundredth of a core.
const SAMPLE_TICKS: u64 = 2;
/// How long a window that closes waits for calls in flight, nanoseconds.
const PATIENCE_NS: u64 = 200_000_000;
/// Longest look at the pages of one space that ends.
const PAGES_BUDGET: Duration = Duration::from_millis(250);

/// Where the window stands.
pub enum Window {
    /// The program has not started.
    Waiting,
    /// Recording.
    Open,
    /// Waiting for calls in flight before the last checkpoints.
    Closing(Closing),
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
                self.sample();
                if self.task.window_ns.is_some_and(|length| now >= length) {
                    self.close_window(WindowEnd::Time);
                }
            }
            Window::Closing(closing) if now.saturating_sub(closing.since_ns) > PATIENCE_NS => {
                self.finish_window();
            }
            _ => {}
        }
    }

    fn sample(&mut self) {
        self.ticks += 1;
        let every = SAMPLE_TICKS.max(self.spaces.len() as u64 / 5);
        if !self.ticks.is_multiple_of(every) {
            return;
        }
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
        let limit = self.max_mappings;
        for space in self.spaces.values_mut() {
            if space.fresh.is_stale(limit)
                && let Ok(vmas) = space.maps.all(&mut self.files)
            {
                space.fresh.recounted(vmas.len());
            }
        }
    }

    fn a_thread_of(&self, space: SpaceId) -> Option<Tid> {
        self.threads
            .iter()
            .find(|(_, t)| t.space == Some(space) && !t.exiting)
            .map(|(tid, _)| *tid)
    }

    /// Memory calls of a space's threads that have not come back, or may not have.
    fn calls_in_flight(&self, id: SpaceId) -> Vec<InFlight> {
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

    /// Logs the kernel's maps of a space.
    pub(super) fn checkpoint(
        &mut self,
        tid: Tid,
        id: SpaceId,
        reason: CheckpointReason,
        in_flight: Vec<InFlight>,
        held_ns: u64,
    ) {
        let Some(space) = self.spaces.get(&id) else {
            return;
        };
        let Ok(vmas) = space.maps.all(&mut self.files) else {
            return;
        };
        if vmas.is_empty() {
            return;
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
            vmas,
            in_flight,
            held_ns,
        }));
    }

    /// The last checkpoint of a space, and where its pages are.
    pub(super) fn last_look(
        &mut self,
        tid: Tid,
        id: SpaceId,
        reason: CheckpointReason,
        in_flight: Vec<InFlight>,
        held_ns: u64,
    ) {
        if self.journal.is_none() {
            return;
        }
        self.checkpoint(tid, id, reason, in_flight, held_ns);
        if let Ok(sample) = residency::rss(tid) {
            self.record(Body::Rss(id, sample));
        }
        if let Some(pages) = self.resident_pages(tid, id) {
            self.record(Body::Residency(pages));
        }
    }

    fn resident_pages(&mut self, tid: Tid, id: SpaceId) -> Option<Residency> {
        let vmas = self.spaces.get(&id)?.maps.all(&mut self.files).ok()?;
        residency::pages(tid, id, &vmas, PAGES_BUDGET).ok()
    }

    /// The program has ended; its children may go on.
    pub(super) fn root_ended(&mut self) {
        self.close_window(WindowEnd::ProgramEnded);
    }

    fn close_window(&mut self, why: WindowEnd) {
        match self.window {
            Window::Open => {}
            // The program never ran.
            Window::Waiting => return self.finish_window(),
            Window::Closing(_) | Window::Closed => return,
        }
        let busy = |id: &&SpaceId| self.spaces.get(id).is_some_and(|s| s.in_flight > 0);
        let waiting: FxHashSet<SpaceId> = self.spaces.keys().filter(busy).copied().collect();
        let done = waiting.is_empty();
        self.window = Window::Closing(Closing {
            why,
            since_ns: self.now().0,
            waiting,
            held: Vec::new(),
        });
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
        self.take(&stopped);
        if let Window::Closing(closing) = &mut self.window {
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
        if !matches!(self.window, Window::Closed) {
            self.end_now(WindowEnd::Output(why));
        }
    }

    /// Takes the last checkpoints and completes the log. No-op if that was done.
    pub(super) fn finish_window(&mut self) {
        match std::mem::replace(&mut self.window, Window::Waiting) {
            Window::Closing(closing) => {
                let held_ns = self.now().0.saturating_sub(closing.since_ns);
                self.end(closing.why, held_ns);
                for stopped in closing.held {
                    // A thread that died meanwhile needs nothing.
                    let _ = self.resume(stopped);
                }
            }
            Window::Closed => self.window = Window::Closed,
            Window::Waiting | Window::Open => self.end(WindowEnd::ProgramEnded, 0),
        }
    }

    fn end_now(&mut self, why: WindowEnd) {
        match std::mem::replace(&mut self.window, Window::Waiting) {
            Window::Closing(closing) => {
                self.window = Window::Closing(Closing { why, ..closing });
                self.finish_window();
            }
            _ => self.end(why, 0),
        }
    }

    fn end(&mut self, why: WindowEnd, held_ns: u64) {
        self.window = Window::Closed;
        let in_calls: Vec<Tid> = self.threads.keys().copied().collect();
        let spaces: Vec<SpaceId> = self.spaces.keys().copied().collect();
        let in_flight: Vec<(SpaceId, Vec<InFlight>)> = spaces
            .iter()
            .map(|id| (*id, self.calls_in_flight(*id)))
            .collect();
        for tid in in_calls {
            self.abandon_call(tid);
        }
        for (id, in_flight) in in_flight {
            if let Some(tid) = self.a_thread_of(id) {
                self.last_look(tid, id, CheckpointReason::WindowEnd, in_flight, held_ns);
            }
            self.define_bases(id);
            let how = SpaceEnd::Window;
            self.record(Body::SpaceEnd { space: id, how });
        }
        self.end_threads();
        self.complete(why);
        self.spaces.clear();
        for thread in self.threads.values_mut() {
            thread.space = None;
        }
        for (_, stayer) in std::mem::take(&mut self.staying) {
            // There is nothing to stay for any more; a thread that died meanwhile needs nothing.
            let _ = self.resume(stayer.stopped);
        }
    }

    /// Threads go on, and nothing more is told of them.
    fn end_threads(&mut self) {
        let live: Vec<Tid> = self.threads.keys().copied().collect();
        for tid in live {
            self.ask_name(tid);
            let thread = self.threads.get_mut(&tid).filter(|t| t.space.is_some());
            if let Some(thread) = thread {
                let (thread, name) = (thread.ix, std::mem::take(&mut thread.name));
                self.record(Body::ThreadEnd {
                    thread,
                    status: None,
                    name,
                });
            }
        }
    }

    /// Writes the summary. The log is then on its way to the disk, and nobody waits for it.
    fn complete(&mut self, why: WindowEnd) {
        let Some(journal) = &self.journal else {
            return;
        };
        let window_ns = journal.now().0;
        let (events, lost) = journal.counts();
        let uncovered = std::mem::take(&mut self.uncovered);
        self.record(Body::Summary(Summary {
            end: why.clone(),
            events,
            lost,
            settled: self.stats.settled,
            stops: self.stats.stops,
            stopped_ns: self.stats.stopped_ns,
            uncovered,
        }));
        let low_water = self.stamp();
        let Some(journal) = self.journal.take() else {
            return;
        };
        self.follower.stop();
        let closing = journal.close(low_water, &mut self.stacks);
        let report = Report {
            events,
            lost,
            settled: self.stats.settled,
            stops: self.stats.stops,
            stopped_ns: self.stats.stopped_ns,
            window_ns,
            spaces: self.stats.spaces,
            threads: self.stats.threads,
            checkpoints: self.stats.checkpoints,
            output_failure: match why {
                WindowEnd::Output(why) => Some(why),
                _ => None,
            },
            goes_on: !self.threads.is_empty(),
        };
        self.written = Some((closing, report));
    }

    /// Tells the front process once the log is written.
    pub(super) fn report_if_written(&mut self) {
        if let Some((closing, report)) = self.written.take_if(|(closing, _)| closing.is_done()) {
            self.report(closing, report);
        }
    }

    /// Waits for the log to be written. For when there is nobody left to serve.
    pub(super) fn wait_for_log(&mut self) {
        if let Some((closing, report)) = self.written.take() {
            self.report(closing, report);
        }
    }

    fn report(&mut self, closing: journal::Closing, mut report: Report) {
        let (events, lost, failure) = closing.finish();
        (report.events, report.lost) = (events, lost);
        report.output_failure = failure.or(report.output_failure);
        self.front.done(&report, self.unwinder.modules.files());
        // What stacks were unwound with keeps files open.
        self.unwinder = Unwinder::new();
        self.rest_without_log();
    }
}
