//! The tracer: takes the next event, dispatches it, until no thread is left, or all are let go.
//!
//! One thread of one process serves all threads of the target; this file is the loop.
//!
//! ```text
//! stops                            how stops are collected
//! opening, capture, interruption   the window opens on a program that runs already
//! calls, decode, fresh             what happens at a memory call
//! transfers, timeouts              what a tracer would change in other calls, made good
//! lives, untraced                  threads and programs that come and go, or that nobody records
//! window, limits, leaving          what is sampled, when the window closes, and how
//! state                            what is known of threads and spaces
//! ```

mod calls;
mod capture;
mod decode;
mod fresh;
mod interruption;
mod leaving;
mod limits;
mod lives;
mod opening;
mod state;
mod stops;
mod timeouts;
mod transfers;
mod untraced;
mod window;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use maptrail_tracelog::record::{Body, Mechanism, WindowEnd};
use maptrail_tracelog::types::{Nanos, Pid, SpaceId, Stamp, Tid};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::code::CodeLog;
use crate::core::Follower;
use crate::front::{Report, ToFront};
use crate::journal::{Closing, Journal};
use crate::maps::FileTable;
use crate::mechanism;
use crate::perf_map::PerfMap;
use crate::proc;
use crate::sys::guard::Guard;
use crate::sys::ptrace::{Resume, StopError, Stopped};
use crate::sys::wait::{self, Event, Stop, Stops};
use crate::sys::{asked, memory, spawn, timer};
use crate::target::{Choice, Target};
use crate::unwind::{Frame, Interner, StackCopy, TargetMemory, Unwinder};

pub use limits::Limits;
pub use opening::OPENING_TICK;
pub use window::TICK;

use capture::Capture;
use limits::Cost;
use state::{Newborn, Space, Staying, Thread};
use untraced::UntracedThreads;
use window::Window;

/// Remarks of what could not be seen; more of them say nothing new.
const MAX_UNCOVERED: usize = 100;
/// Threads that were served and wait for the rest of their batch to be resumed with it, at most.
const RESUMED_TOGETHER: usize = 64;

/// What to trace, and how.
pub struct Task {
    /// The process whose end ends the window.
    pub root: Pid,
    /// How stops are made.
    pub mechanism: Mechanism,
    /// Record the processes that it makes, too.
    pub follow_forks: bool,
    /// When the window closes.
    pub limits: Limits,
    /// Its parent, if that is to be woken when the program goes on: it stops when it is stopped.
    pub front: Option<Pid>,
    /// It ran before, and is left as it was when the window closes.
    pub attached: Option<Attached>,
}

/// What is particular to a program that ran before.
pub struct Attached {
    /// The process, as it was when it was looked at.
    pub target: Target,
    /// Which threads to follow.
    pub choice: Choice,
    /// Frees the program if the tracer gives no sign of life.
    pub guard: Guard,
    /// The log, until it begins with the window.
    pub log: Option<Journal>,
}

/// Counts for the summary.
#[derive(Default)]
struct Stats {
    stops: u64,
    stopped_ns: u64,
    settled: u64,
    checkpoints: u64,
    spaces: u64,
    threads: u64,
}

/// The tracer's state.
pub struct Tracer {
    task: Task,
    front: ToFront,
    threads: FxHashMap<Tid, Thread>,
    /// Those of them that are to be taken up.
    capture: Capture,
    /// Threads that the kernel would not let us trace.
    refused: FxHashSet<Tid>,
    untraced: UntracedThreads,
    /// Threads that stopped at birth before their maker's stop told of them.
    newborn: FxHashMap<Tid, Newborn>,
    /// Threads that end their process and stay to the last.
    staying: FxHashMap<Pid, Staying>,
    spaces: FxHashMap<SpaceId, Space>,
    /// Stops that were taken off the kernel's list and are served in turn.
    batch: VecDeque<(Stopped, Stop)>,
    /// How many batches were collected.
    batches: u64,
    /// When the last one was, CLOCK_MONOTONIC nanoseconds.
    batch_since: u64,
    /// When a stop was served last, the same.
    served_until: u64,
    /// Threads of the batch that were served and are resumed with it, and how.
    ready: Vec<(Stopped, Resume, i32)>,
    window: Window,
    /// The log's time goes on. It stands while the first checkpoints of a running program are taken.
    clock_runs: bool,
    /// The threads that are not let go yet are to be looked at ...
    look_at_rest: bool,
    /// ... and were so many times.
    rest_looks: u32,
    cost: Cost,
    stamps: AtomicU64,
    /// `None` before the window of a running program opens, and once the log is complete.
    journal: Option<Journal>,
    /// A complete log that is being written, and what to say of it then.
    written: Option<(Closing, Report)>,
    files: FileTable,
    code: CodeLog,
    unwinder: Unwinder,
    /// Of spaces that ended, or that were looked at for the last time.
    perf_maps: Vec<PerfMap>,
    stacks: Interner,
    stack: StackCopy,
    frames: Vec<Frame>,
    follower: Follower,
    /// It stood still before.
    stalled: bool,
    /// Job control stopped the root process.
    root_stopped: bool,
    /// The front process is to be woken once more at the next tick: it may have been about to stop.
    wake_front: bool,
    ticks: u64,
    stats: Stats,
    /// What could not be seen, for the summary.
    uncovered: Vec<String>,
    /// The kernel's limit of mappings in a space.
    max_mappings: usize,
}

impl Tracer {
    /// A tracer that traces nobody yet.
    #[must_use]
    pub fn new(task: Task, journal: Option<Journal>, front: ToFront) -> Tracer {
        // A program that ran before is never made to wait for a tracer of the idle class.
        let follower = match task.attached {
            Some(_) => Follower::nowhere(),
            None => Follower::new(),
        };
        let clock_runs = task.attached.is_none();
        Tracer {
            task,
            front,
            threads: FxHashMap::default(),
            capture: Capture::default(),
            refused: FxHashSet::default(),
            untraced: UntracedThreads::default(),
            newborn: FxHashMap::default(),
            staying: FxHashMap::default(),
            spaces: FxHashMap::default(),
            batch: VecDeque::new(),
            batches: 0,
            batch_since: 0,
            served_until: 0,
            ready: Vec::with_capacity(RESUMED_TOGETHER),
            window: Window::Waiting,
            clock_runs,
            look_at_rest: false,
            rest_looks: 0,
            cost: Cost::default(),
            stamps: AtomicU64::new(1),
            journal,
            written: None,
            files: FileTable::default(),
            code: CodeLog::default(),
            unwinder: Unwinder::new(),
            perf_maps: Vec::new(),
            stacks: Interner::new(),
            stack: StackCopy::new(),
            frames: Vec::with_capacity(crate::unwind::MAX_FRAMES),
            follower,
            stalled: false,
            root_stopped: false,
            wake_front: false,
            ticks: 0,
            stats: Stats::default(),
            uncovered: Vec::new(),
            max_mappings: proc::max_mappings(),
        }
    }

    /// Begins with a process of one thread, which is traced already and is about to become the program.
    pub fn expect_program(&mut self) {
        let root = self.task.root;
        let thread = Thread::new(root);
        self.threads.insert(Tid(root.0), thread);
    }

    /// Serves the target until its last thread is gone, or is let go.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_done() {
            match self.next_event(true)? {
                Event::Stopped(stopped, stop) => self.serve(stopped, stop),
                Event::Ended(tid, status) => self.thread_ended(tid, status),
                Event::Interrupted | Event::Nothing => {}
                Event::NoneLeft if self.awaits_threads() => thread::sleep(OPENING_TICK),
                Event::NoneLeft => break,
            }
            self.between_events()?;
        }
        self.threads_ended();
        self.finish_window();
        self.complete_now();
        self.wait_for_log();
        if self.task.attached.is_some() {
            self.let_the_rest_go()?;
        }
        Ok(())
    }

    fn between_events(&mut self) -> io::Result<()> {
        if !self.staying.is_empty() {
            self.let_stayers_go();
        }
        if timer::ticked() {
            self.sign_of_life();
            if std::mem::take(&mut self.wake_front) {
                self.wake_front();
            }
            if !self.newborn.is_empty() {
                self.adopt_orphans();
            }
            if !self.capture.is_empty() && self.is_recording() {
                self.capture()?;
            }
            self.tick();
            self.look_at_rest = true;
        }
        if matches!(self.window, Window::Opening(_)) {
            self.advance_opening();
        }
        if asked::asked() {
            self.close_window(WindowEnd::Asked);
        } else if asked::stood_still() && self.gives_up_for_stall() {
            let why = "the recorder stood still for a second or more (stopped, or without processor or \
                       disk), and its guard does not let a program wait for that";
            self.close_window(WindowEnd::Limit(why.into()));
        }
        Ok(())
    }

    /// The tracer stood still. A busy machine may do that to it while it takes up threads, but once.
    fn gives_up_for_stall(&mut self) -> bool {
        let again = std::mem::replace(&mut self.stalled, true);
        again || !self.is_opening()
    }

    fn serve(&mut self, stopped: Stopped, stop: Stop) {
        let since = timer::monotonic_ns();
        self.stats.stops += 1;
        self.follower.served(&stopped);
        let tid = stopped.tid();
        let outcome = self.dispatch(stopped, stop);
        self.served(outcome);
        if self.batch.is_empty() || self.ready.len() >= RESUMED_TOGETHER {
            self.go_all();
        }
        let now = timer::monotonic_ns();
        self.served_until = now;
        self.stats.stopped_ns += now.saturating_sub(since);
        self.charge(tid, now);
    }

    /// Whatever was refused, no thread is left standing by that.
    fn served(&mut self, outcome: Result<(), StopError>) {
        match outcome {
            // Its death is about to be reported.
            Ok(()) | Err(StopError::Gone(_)) => {}
            Err(StopError::Refused {
                request,
                tid,
                source,
            }) => {
                self.note(format!("{request} was refused on thread {tid}: {source}"));
                // If it was resumed after all, this is refused as well.
                let _ = self.resume(Stopped::perhaps(tid));
            }
        }
    }

    fn dispatch(&mut self, stopped: Stopped, stop: Stop) -> Result<(), StopError> {
        if stop == Stop::Exec {
            // Until this stop is taken the kernel answers nothing about a thread that has another id since
            // its exec (`looks_like_a_spurious_pid` in kernel/ptrace.c).
            if self.take(&stopped) == Some(Stop::Exit) {
                return self.exiting(stopped);
            }
        } else if !self.threads.contains_key(&stopped.tid()) {
            return self.unknown(stopped, stop);
        }
        if stopped.tid().0 == self.task.root.0 {
            self.follow_job_control(stop);
        }
        if !self.capture.is_empty() {
            self.captured(&stopped, stop)?;
        }
        match stop {
            Stop::Seccomp | Stop::Syscall => self.at_call(stopped),
            Stop::Child => self.child(stopped),
            Stop::Exec => self.exec(stopped),
            Stop::Exit => self.exiting(stopped),
            Stop::Signal(signal) => {
                let thread = self.threads.get_mut(&stopped.tid());
                let was_stopped = thread.is_some_and(|t| std::mem::take(&mut t.was_stopped));
                if !was_stopped {
                    // Whatever comes of that, the signal is delivered.
                    let _ = interruption::undo_if_ignored(&stopped, signal);
                }
                self.resume_with(stopped, signal)
            }
            Stop::Group => {
                let thread = self.threads.get_mut(&stopped.tid());
                if let Some(rip) = thread.and_then(Thread::stopped_by_job_control) {
                    interruption::redo(&stopped, rip)?;
                    self.wait_ends(&stopped)?;
                }
                stopped.listen()
            }
            Stop::Trap => self.trap(stopped),
            Stop::Other => self.resume(stopped),
        }
    }

    /// Whoever stopped the program stopped the front process with it, but whoever continues it may
    /// not know of the front process (`kill -CONT` of the program alone).
    fn follow_job_control(&mut self, stop: Stop) {
        match stop {
            Stop::Group => self.root_stopped = true,
            Stop::Other => {}
            _ if self.root_stopped => {
                self.root_stopped = false;
                self.wake_front = true;
                self.wake_front();
            }
            _ => {}
        }
    }

    /// Nobody is traced at this moment, but somebody will be, or may be.
    fn awaits_threads(&self) -> bool {
        let Some(attached) = &self.task.attached else {
            return false;
        };
        let may_come = || !attached.choice.names.is_empty() && attached.target.is_same();
        self.is_recording() && (!self.capture.is_empty() || may_come())
    }

    /// Nobody is traced any more. A program may outlive those of its threads that were chosen.
    fn threads_ended(&mut self) {
        let Some(attached) = &self.task.attached else {
            return;
        };
        let chosen = self.is_recording() && !attached.choice.takes_all();
        if chosen && attached.target.lives_on() {
            self.close_window(WindowEnd::ThreadsEnded);
        }
    }

    /// Tells the guard that the tracer is at work.
    fn sign_of_life(&self) {
        if let Some(attached) = &self.task.attached {
            attached.guard.alive();
        }
    }

    fn wake_front(&self) {
        if let Some(front) = self.task.front {
            spawn::kill(front, libc::SIGCONT);
        }
    }

    /// Lets a thread go on as its state wants it.
    fn resume(&mut self, stopped: Stopped) -> Result<(), StopError> {
        self.resume_with(stopped, 0)
    }

    fn resume_with(&mut self, stopped: Stopped, signal: i32) -> Result<(), StopError> {
        let thread = self.threads.get(&stopped.tid());
        if thread.is_some_and(|t| t.pending.is_some()) {
            return self.go(stopped, Resume::ToSyscall, signal);
        }
        if self.is_free(stopped.tid()) {
            let tid = stopped.tid();
            self.ask_name(tid);
            stopped.detach(signal)?;
            self.drop_thread(tid, None);
            return Ok(());
        }
        let how = mechanism::idle(self.task.mechanism);
        self.go(stopped, how, signal)
    }

    /// Resumes a thread, at once or with the others of its batch. While they all stand, reading their
    /// memory does not wait for their calls (both want the lock of the space).
    fn go(&mut self, stopped: Stopped, how: Resume, signal: i32) -> Result<(), StopError> {
        if self.batch.is_empty() && self.ready.is_empty() {
            return stopped.resume(how, signal);
        }
        self.ready.push((stopped, how, signal));
        Ok(())
    }

    /// The batch is served.
    fn go_all(&mut self) {
        for (stopped, how, signal) in self.ready.drain(..) {
            // To resume is refused only if its death is about to be reported.
            let _ = stopped.resume(how, signal);
        }
    }

    /// What threads do is written down, or will be.
    fn is_recording(&self) -> bool {
        !matches!(self.window, Window::Leaving(_) | Window::Closed)
    }

    /// The next place in the order of stops.
    fn stamp(&self) -> Stamp {
        Stamp(self.stamps.fetch_add(1, Ordering::Relaxed))
    }

    fn now(&self) -> Nanos {
        match &self.window {
            Window::Leaving(leaving) => leaving.closed(),
            _ if !self.clock_runs => Nanos(0),
            _ => self.journal.as_ref().map_or(Nanos(0), Journal::now),
        }
    }

    /// Writes a record with the next stamp. No-op once the log is complete.
    fn record(&mut self, body: Body) {
        let (stamp, now) = (self.stamp(), self.now());
        if let Some(journal) = &mut self.journal {
            journal.record(stamp, now, body);
        }
    }

    /// Says what could not be seen, to the user and in the summary.
    fn uncovered(&mut self, what: String) {
        if self.uncovered.len() < MAX_UNCOVERED && !self.uncovered.contains(&what) {
            self.front.note(&what);
            self.uncovered.push(what);
        }
    }

    /// Says something to the user, and to the log's readers.
    fn note(&mut self, text: String) {
        self.front.note(&text);
        self.record(Body::Note(text));
    }

    /// No effect that is still to come has a smaller stamp than this.
    fn low_water(&self) -> Stamp {
        let next = Stamp(self.stamps.load(Ordering::Relaxed));
        self.threads
            .values()
            .filter_map(|t| match &t.pending {
                Some(state::Pending::Memory(call)) => Some(call.entry),
                _ => None,
            })
            .min()
            .unwrap_or(next)
    }

    /// Hands the chunk on to be written; a log that cannot be written any more ends the window.
    fn flush(&mut self) {
        let spaces: Vec<SpaceId> = self.spaces.keys().copied().collect();
        for space in spaces {
            self.define_bases(space);
        }
        let low_water = self.low_water();
        let Some(journal) = &mut self.journal else {
            return;
        };
        if let Err(why) = journal.flush(low_water, &mut self.stacks) {
            self.output_failed(why);
        }
    }

    /// Defines the files and modules that the log has not been told of, before it is told what
    /// refers to them.
    fn define_new(&mut self) {
        while let Some((id, info)) = self.files.next_new() {
            self.record(Body::File(id, info));
        }
        while let Some((id, info)) = self.code.next_new(&self.unwinder.modules) {
            self.record(Body::Module(id, info));
        }
    }

    /// Tells where modules lie in a space.
    fn define_bases(&mut self, id: SpaceId) {
        self.define_new();
        let Some(space) = self.spaces.get(&id) else {
            return;
        };
        for body in self.code.new_bases(id, &space.code) {
            self.record(body);
        }
    }
}

/// Serves all threads without looking at them, until the last one is gone: what is left to do when
/// the tracer itself failed.
pub fn pass_through() {
    for tid in proc::traced_by_this_process() {
        // Its stop may have been taken. One that runs refuses.
        let _ = Stopped::perhaps(tid).resume(Resume::Run, 0);
    }
    loop {
        match wait::next(true, Stops::Peeked) {
            Ok(Event::Stopped(stopped, stop)) => {
                // A thread that died meanwhile needs nothing.
                let _ = match stop {
                    Stop::Signal(signal) => stopped.resume(Resume::Run, signal),
                    Stop::Group => stopped.listen(),
                    _ => stopped.resume(Resume::Run, 0),
                };
            }
            Ok(Event::NoneLeft) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// The memory of one thread's process.
struct MemoryOf(Tid);

impl TargetMemory for MemoryOf {
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> usize {
        memory::read(self.0, addr, buf)
    }
}
