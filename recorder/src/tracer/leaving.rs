//! Closing the window: the last checkpoints, and the log's end.
//!
//! The last checkpoints are all that threads may be held for. Then they are let go (or, where a filter
//! stays in the target, served without being recorded), and only then, beside that, the pages in RAM are
//! looked at and the log is completed.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use maptrail_tracelog::record::{
    Body, CheckpointReason, InFlight, Residency, SpaceEnd, Summary, Vma, WindowEnd,
};
use maptrail_tracelog::types::{Nanos, SpaceId, Tid};

use super::state::NOT_RECORDED;
use super::timeouts::Wait;
use super::window::{PAGES_BUDGET, Window};
use super::{Resume, StopError, Stopped, Thread, Tracer};
use crate::footprint;
use crate::front::Report;
use crate::journal;
use crate::mechanism;
use crate::patience::{PATIENCE, within};
use crate::perf_map::PerfMap;
use crate::proc::{self, Doing};
use crate::residency;
use crate::sys::wait::{self, Event};
use crate::sys::{spawn, timer};
use crate::unwind::Unwinder;

/// How often threads are looked at that are not let go yet.
const LEAVING_TICK: Duration = Duration::from_millis(10);
/// How often threads that were not let go when the window closed are looked at while that is waited for.
const REST_LOOKS: u32 = 500;

/// A window whose last checkpoints were taken.
pub struct Leaving {
    why: WindowEnd,
    /// Length of the window, nanoseconds.
    window_ns: u64,
    found: Receiver<Found>,
}

impl Leaving {
    /// When the window closed, in the log's time. What is found out later is of that moment.
    #[must_use]
    pub fn closed(&self) -> Nanos {
        Nanos(self.window_ns)
    }
}

/// What was found out beside the threads that were let go.
enum Found {
    /// Names of code in no file.
    PerfMap(PerfMap),
    /// Pages in RAM.
    Pages(Residency),
}

/// The pages of a space, to be looked at.
struct Look {
    space: SpaceId,
    pagemap: File,
    vmas: Vec<Vma>,
}

impl Tracer {
    /// Takes the last checkpoints and lets `held` go. The log is completed beside that.
    pub(super) fn end(&mut self, why: WindowEnd, held_ns: u64, held: Vec<Stopped>) {
        // No call is recorded from here on.
        let (to_us, found) = channel();
        let window_ns = self.now().0;
        self.find_untraced();
        let spaces: Vec<SpaceId> = self.spaces.keys().copied().collect();
        let in_flight: Vec<(SpaceId, Vec<InFlight>)> = spaces
            .iter()
            .map(|id| (*id, self.calls_in_flight(*id)))
            .collect();
        let tids: Vec<Tid> = self.threads.keys().copied().collect();
        for tid in tids {
            self.abandon_call(tid);
        }
        let (mut looks, mut places) = (Vec::new(), Vec::new());
        for (id, in_flight) in in_flight {
            if let Some(tid) = self.a_thread_of(id) {
                looks.extend(self.last_checkpoint(tid, id, in_flight, held_ns));
                places.extend(self.perf_map_place(tid, id));
            }
            self.define_bases(id);
            let how = SpaceEnd::Window;
            self.record(Body::SpaceEnd { space: id, how });
        }
        self.tell_of_the_left();
        self.all_untraced_end();
        self.window = Window::Leaving(Leaving {
            why,
            window_ns,
            found,
        });
        self.spaces.clear();
        for thread in self.threads.values_mut() {
            thread.space = None;
        }
        self.let_all_go(held);
        let look = move || {
            timer::block_signals_in_this_thread();
            let maps = places
                .into_iter()
                .filter_map(|place| within(PATIENCE, move || place.open())?);
            let pages = looks.into_iter().filter_map(|look| {
                residency::pages(&look.pagemap, look.space, &look.vmas, PAGES_BUDGET).ok()
            });
            for found in maps.map(Found::PerfMap).chain(pages.map(Found::Pages)) {
                // The tracer may have failed meanwhile, and then nobody hears it.
                let _ = to_us.send(found);
            }
            drop(to_us);
            // The tracer waits for stops.
            spawn::wake_self();
        };
        // Without it the log says that nobody looked.
        let _ = thread::Builder::new()
            .name("maptrail-pages".into())
            .spawn(look);
        self.end_threads();
        self.complete_if_looked();
    }

    /// The last checkpoint of a space that goes on.
    fn last_checkpoint(
        &mut self,
        tid: Tid,
        id: SpaceId,
        in_flight: Vec<InFlight>,
        held_ns: u64,
    ) -> Option<Look> {
        let vmas = self.checkpoint(tid, id, CheckpointReason::WindowEnd, in_flight, held_ns)?;
        if let Ok(sample) = residency::rss(tid) {
            self.record(Body::Rss(id, sample));
        }
        let pagemap = residency::pagemap(tid).ok()?;
        Some(Look {
            space: id,
            pagemap,
            vmas,
        })
    }

    /// Nobody is held any more, for whatever reason.
    pub(super) fn let_all_go(&mut self, held: Vec<Stopped>) {
        for stopped in held {
            // They stand before a call.
            let _ = match self.lets_go() {
                true => self.let_go_at_entry(stopped),
                false => self.resume(stopped),
            };
        }
        let mut all = Vec::new();
        all.extend(self.staying.drain().map(|(_, stayer)| stayer.stopped));
        if self.lets_go() {
            all.extend(self.newborn.drain().map(|(_, newborn)| newborn.stopped));
        }
        for stopped in all {
            // A thread that died meanwhile needs nothing.
            let _ = self.resume(stopped);
        }
        self.go_all();
    }

    /// Threads go on, and nothing more is told of them.
    fn end_threads(&mut self) {
        let live: Vec<Tid> = self.threads.keys().copied().collect();
        for tid in live {
            self.sign_of_life();
            if let Some(thread) = self.threads.get(&tid).filter(|t| t.is_recorded()) {
                let name = Some(proc::comm(tid)).filter(|name| !name.is_empty());
                let name = name.unwrap_or_else(|| thread.name.clone());
                self.end_thread(tid, None, name);
            }
            // To ask for names takes a while, and nobody is to wait for that. A failure is met again in
            // the loop.
            let _ = self.serve_waiting();
        }
    }

    /// Nothing more is told of a thread, if anything was.
    pub(super) fn end_thread(&mut self, tid: Tid, status: Option<i32>, name: String) {
        let Some(thread) = self.threads.get_mut(&tid).filter(|t| t.is_recorded()) else {
            return;
        };
        let thread = std::mem::replace(&mut thread.ix, NOT_RECORDED);
        self.record(Body::ThreadEnd {
            thread,
            status,
            name,
        });
    }

    /// Completes the log once the last pages are looked at.
    pub(super) fn complete_if_looked(&mut self) {
        let Window::Leaving(leaving) = &self.window else {
            return;
        };
        match leaving.found.try_recv() {
            Ok(found) => {
                self.take_in(found);
                self.complete_if_looked();
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => self.complete(),
        }
    }

    fn take_in(&mut self, found: Found) {
        match found {
            Found::PerfMap(map) => self.perf_maps.push(map),
            Found::Pages(pages) => self.record(Body::Residency(pages)),
        }
    }

    /// Waits for that. For when there is nobody left to serve.
    pub(super) fn complete_now(&mut self) {
        while let Window::Leaving(leaving) = &self.window {
            match leaving.found.recv() {
                Ok(found) => self.take_in(found),
                Err(_) => self.complete(),
            }
        }
    }

    /// Writes the summary. The log is then on its way to the disk, and nobody waits for it.
    fn complete(&mut self) {
        let Window::Leaving(Leaving { why, window_ns, .. }) = &self.window else {
            return;
        };
        let (why, window_ns) = (why.clone(), *window_ns);
        let Some(journal) = &self.journal else {
            self.window = Window::Closed;
            return;
        };
        let (events, lost) = journal.counts();
        let uncovered = std::mem::take(&mut self.uncovered);
        let footprint = footprint::so_far();
        self.record(Body::Footprint(footprint));
        self.record(Body::Summary(Summary {
            end: why.clone(),
            events,
            lost,
            settled: self.stats.settled,
            stops: self.stats.stops,
            stopped_ns: self.stats.stopped_ns,
            uncovered,
        }));
        self.window = Window::Closed;
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
            output_failure: match &why {
                WindowEnd::Output(why) => Some(why.clone()),
                _ => None,
            },
            limit: match why {
                WindowEnd::Limit(which) => Some(which),
                _ => None,
            },
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
        let modules = self.unwinder.modules.files();
        self.front.done(&report, modules, &self.perf_maps);
        self.perf_maps.clear();
        // What stacks were unwound with keeps files open.
        self.unwinder = Unwinder::new();
        self.rest();
    }

    /// There is no log, or it is complete.
    pub(super) fn rest(&mut self) {
        match self.task.attached {
            // The rest is let go soon; see `is_done`.
            Some(_) => drop(timer::start(LEAVING_TICK)),
            None => self.rest_without_log(),
        }
    }

    /// An attached program needs nobody when its log is complete and its threads are let go, or sleep:
    /// these the end of this process lets go, and to wake them would break their calls off. One that
    /// computes would stop before its next call, at the very moment perhaps, which a call that sleeps
    /// does not survive (see [`Tracer::let_go_at_entry`]): it is waited for, with patience.
    pub(super) fn is_done(&mut self) -> bool {
        let complete = matches!(self.window, Window::Closed) && self.written.is_none();
        if !complete || self.task.attached.is_none() || !std::mem::take(&mut self.look_at_rest) {
            return false;
        }
        self.rest_looks += 1;
        let computes = |(tid, thread): (&Tid, &Thread)| {
            !thread.let_go && !thread.exiting && matches!(proc::doing(*tid), Ok(Doing::Runs))
        };
        let busy = self.capture.is_under_way() || self.threads.iter().any(computes);
        let unfinished = |thread: &Thread| thread.transfers.are_unfinished();
        let busy = busy || self.threads.values().any(unfinished);
        self.rest_looks > REST_LOOKS || !busy
    }

    /// Serves those that have stopped, and ends the thread that traces the others, all in one breath: who
    /// came to stand before a call in between would see it broken off. Returns if that cannot be done, or
    /// nobody is left.
    pub(super) fn let_the_rest_go(&mut self) -> io::Result<()> {
        let others = spawn::end_after_this_thread();
        loop {
            match wait::next(false, mechanism::stops(self.task.mechanism))? {
                Event::Stopped(stopped, stop) => self.serve(stopped, stop),
                Event::Ended(tid, status) => self.thread_ended(tid, status),
                Event::Interrupted => {}
                Event::Nothing => break,
                Event::NoneLeft => return Ok(()),
            }
        }
        if let Some(attached) = &self.task.attached {
            attached.guard.rest();
        }
        match others {
            Ok(()) => spawn::end_this_thread(),
            Err(_) => Ok(()),
        }
    }

    /// A thread that stands before a system call is let go. It is not detached there: the kernel would
    /// mark it as having a signal (`ptrace_signal_wake_up`), and a call that sleeps would be broken off.
    pub(super) fn let_go_at_entry(&mut self, stopped: Stopped) -> Result<(), StopError> {
        if let Some(thread) = self.threads.get_mut(&stopped.tid()) {
            thread.let_go = true;
        }
        self.go(stopped, Resume::Run, 0)
    }

    /// The thread is to be let go where it stops.
    pub(super) fn is_free(&self, tid: Tid) -> bool {
        let thread = self.threads.get(&tid);
        let unfinished = |thread: &Thread| {
            let shortened = |wait: Wait| wait.is_shortened();
            thread.transfers.are_unfinished() || thread.wait.is_some_and(shortened)
        };
        if thread.is_some_and(unfinished) {
            return false;
        }
        self.lets_go() || thread.is_some_and(|thread| thread.let_go)
    }

    /// The window is closed, and nothing of ours is left in the target: its threads are let go as
    /// they stop.
    pub(super) fn lets_go(&self) -> bool {
        matches!(self.window, Window::Leaving(_) | Window::Closed)
            && !mechanism::binds(self.task.mechanism)
    }
}
