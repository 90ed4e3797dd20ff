//! Opens the window on a program that runs already.
//!
//! First every chosen thread is taken up (see [`super::capture`]), while all of them go on; memory calls
//! are let through unrecorded. When all are taken up, or those that are left need more
//! patience, threads are held as they arrive at a memory call until the calls under way are over. Then
//! the kernel's maps are the truth to start from, and everything after is recorded.

use std::time::Duration;

use maptrail_tracelog::record::{NotTraced, Origin};
use maptrail_tracelog::types::{SpaceId, Tid};

use super::state::{Pending, Thread};
use super::window::{TICK, Window};
use super::{Stop, StopError, Stopped, Tracer};
use crate::code::Source;
use crate::journal;
use crate::maps::Maps;
use crate::proc;
use crate::sys::{ptrace, timer, wait};
use crate::unwind::AddressMap;

/// How often threads that are not taken up yet are looked at while the window opens. What was asleep in
/// two looks in a row may wake at any moment, but seldom does in that after the second.
pub const OPENING_TICK: Duration = Duration::from_millis(4);
/// So many looks tell which threads make processes, before any is taken up.
const WATCHED: u32 = 15;
/// How long the window waits for threads that cannot be taken up at once, nanoseconds, ...
const PATIENCE_NS: u64 = 300_000_000;
/// ... and how many looks at each of them, on a machine that is too busy for many in that time, ...
const LOOKS: u32 = 50;
/// ... but no longer than this.
const LONGEST_NS: u64 = 10_000_000_000;
/// How long threads are held for calls of others that are under way, nanoseconds.
const HELD_NS: u64 = 50_000_000;

/// Why nothing was recorded of a process that is gone.
pub const ENDED: &str = "it ended before its threads were taken up";

/// The same of threads that were chosen.
pub const GONE: &str = "the chosen threads ended before they were taken up";

/// A window that opens.
pub struct Opening {
    since_ns: u64,
    looks: u32,
    /// Since when threads that arrive at a memory call are held; `None` while they are taken up.
    gathered_ns: Option<u64>,
    held: Vec<Stopped>,
}

impl Opening {
    /// All threads that are to be taken up were looked at once more.
    pub fn looked(&mut self) {
        self.looks = self.looks.saturating_add(1);
    }

    /// Whether threads were held long enough.
    fn held_too_long(&self, now: u64) -> bool {
        self.gathered_ns
            .is_some_and(|since| now.saturating_sub(since) > HELD_NS)
    }

    /// Whether threads are only looked at yet, to see what they do.
    pub fn still_watches(&self) -> bool {
        self.looks < WATCHED
    }

    /// Whether those that are left have had their time; `none` is taken up so far.
    fn is_patience_over(&self, now: u64, none: bool) -> bool {
        let passed = now.saturating_sub(self.since_ns);
        passed > LONGEST_NS || (passed > PATIENCE_NS && self.looks > LOOKS && !none)
    }
}

impl Tracer {
    /// Opens the files that a running program's code comes from, and reads how to unwind in them, before
    /// any thread stops for that.
    pub fn learn_code(&mut self) {
        let maps = proc::threads_of(self.task.root)
            .into_iter()
            .find_map(|tid| {
                let maps = Maps::new(proc::open_maps(tid).ok()?);
                Some((tid, maps.all(&mut self.files).ok()?))
            });
        let Some((tid, vmas)) = maps else { return };
        let source = Source { tid, fd: None };
        let mut nowhere = AddressMap::new();
        let modules = &mut self.unwinder.modules;
        self.code
            .add_all(modules, &mut nowhere, source, &vmas, &self.files);
        modules.read_ahead();
    }

    /// Begins to take up the chosen threads of a program that runs.
    pub fn begin_opening(&mut self) {
        self.find_chosen();
        self.window = Window::Opening(Opening {
            since_ns: timer::monotonic_ns(),
            looks: 0,
            gathered_ns: None,
            held: Vec::new(),
        });
    }

    /// Finds chosen threads that are not traced. (What a traced thread makes is traced by itself.)
    fn find_chosen(&mut self) {
        let Some(attached) = &self.task.attached else {
            return;
        };
        for tid in proc::threads_of(self.task.root) {
            attached.guard.alive();
            let known = self.threads.contains_key(&tid)
                || self.newborn.contains_key(&tid)
                || self.refused.contains(&tid);
            if known || self.capture.awaits(tid) {
                continue;
            }
            let name = proc::comm(tid);
            if attached.choice.takes(tid, &name) && !proc::is_dead(tid) {
                self.capture.begin(tid, name);
            }
        }
    }

    /// Looks for threads that are to be followed and are not traced, whoever made them; and for those
    /// that nobody follows.
    pub(super) fn look_for_threads(&mut self) {
        self.look_for_the_dead();
        self.look_for_new_program();
        self.find_chosen();
        self.find_untraced();
    }

    /// No call is recorded yet.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.window, Window::Opening(_))
    }

    /// Nothing can be recorded. The threads that were taken up are let go as at the end of a window.
    pub(super) fn refuse(&mut self, cause: &str) {
        self.front.refused(cause);
        let held = match std::mem::replace(&mut self.window, Window::Closed) {
            Window::Opening(opening) => opening.held,
            _ => Vec::new(),
        };
        self.let_all_go(held);
        self.rest();
    }

    /// Goes on with the opening.
    pub(super) fn advance_opening(&mut self) {
        let now = timer::monotonic_ns();
        let gathers = matches!(&self.window, Window::Opening(o) if o.gathered_ns.is_some());
        if self.capture.is_empty() && !gathers {
            // Until no new one appears.
            self.find_chosen();
        }
        let none = self.threads.is_empty();
        let Window::Opening(opening) = &mut self.window else {
            return;
        };
        match opening.gathered_ns {
            None if self.capture.is_empty() || opening.is_patience_over(now, none) => {
                opening.gathered_ns = Some(now);
                self.find_sharers();
            }
            None => return,
            Some(_) => {}
        }
        let early = |thread: &Thread| matches!(thread.pending, Some(Pending::Early));
        let held = matches!(&self.window, Window::Opening(o) if o.held_too_long(now));
        if held || !self.threads.values().any(early) {
            self.open_window();
        }
    }

    /// A thread arrives at a memory call before the window is open.
    pub(super) fn early_call(&mut self, stopped: Stopped) -> Result<(), StopError> {
        match &mut self.window {
            Window::Opening(opening) if opening.gathered_ns.is_some() => {
                // A stop of a system call carries no signal.
                if wait::take(&stopped) == Some(Stop::Exit) {
                    return self.exiting(stopped);
                }
                opening.held.push(stopped);
                return Ok(());
            }
            Window::Opening(_) => {
                if let Some(thread) = self.threads.get_mut(&stopped.tid()) {
                    thread.pending = Some(Pending::Early);
                }
            }
            _ => {}
        }
        self.resume(stopped)
    }

    fn open_window(&mut self) {
        let now = timer::monotonic_ns();
        let Some(attached) = &mut self.task.attached else {
            return;
        };
        let command = attached.target.command.clone();
        self.journal = attached.log.take();
        self.remember_turns();
        let Window::Opening(opening) = std::mem::replace(&mut self.window, Window::Open) else {
            return;
        };
        let mut tids: Vec<Tid> = self.threads.keys().copied().collect();
        tids.sort_unstable();
        let mut spaces: Vec<(Tid, SpaceId)> = Vec::new();
        for tid in tids {
            self.sign_of_life();
            self.enter(tid, &mut spaces);
        }
        if spaces.is_empty() {
            let attached = self.task.attached.as_ref();
            let ended = attached.is_some_and(|a| !a.target.lives_on());
            self.window = Window::Opening(opening);
            self.journal = None;
            return self.refuse(match self.threads.is_empty() {
                _ if ended => ENDED,
                true if self.capture.is_empty() => GONE,
                true => "none of its threads could be taken up without harm: try again, or choose others \
                         (--tid, --thread-name)",
                false => "its maps cannot be read, or it ended at this moment",
            });
        }
        if let Some(space) = self.root_space() {
            self.unchosen_live_in(space);
        }
        if let Some(journal) = &mut self.journal {
            journal.begin(journal::header(command, self.task.mechanism, now), now);
        }
        self.sample();
        self.clock_runs = true;
        // The looks and the holding before this moment are over, and nothing to judge it by.
        self.cost_begins();
        for stopped in opening.held {
            let outcome = self.at_call(stopped);
            self.served(outcome);
        }
        self.go_all();
        self.find_untraced();
        self.tell_of_opening();
        // A failure costs a wake-up now and then.
        let _ = timer::set(self.tick_length());
    }

    /// How often the tracer of an open window is woken at least.
    pub(super) fn tick_length(&self) -> Duration {
        let length = self.task.limits.window_ns.map(Duration::from_nanos);
        length.map_or(TICK, |length| length.clamp(OPENING_TICK, TICK))
    }

    /// A thread takes part from here on; its space is entered with the first of its threads.
    fn enter(&mut self, tid: Tid, spaces: &mut Vec<(Tid, SpaceId)>) {
        let thread = self.threads.get(&tid).filter(|thread| !thread.exiting);
        let Some(pid) = thread.map(|thread| thread.pid) else {
            return;
        };
        let same = |other: Tid| {
            let of_process = self.threads.get(&other).is_some_and(|t| t.pid == pid);
            of_process || ptrace::same_space(other, tid) == Some(true)
        };
        let known = spaces.iter().find(|(other, _)| same(*other));
        let space = match known.map(|(_, space)| *space) {
            Some(space) => {
                if let Some(space) = self.spaces.get_mut(&space) {
                    space.threads += 1;
                }
                Some(space)
            }
            None => self.new_space(tid, pid, Origin::Attach, AddressMap::new()),
        };
        let Some(space) = space else { return };
        spaces.push((tid, space));
        let Some(thread) = self.threads.get_mut(&tid) else {
            return;
        };
        if matches!(thread.pending, Some(Pending::Early)) || self.capture.awaits(tid) {
            thread.space = Some(space);
            self.was_untraced(tid, space, NotTraced::Late);
        } else {
            self.begin_thread(tid, space);
        }
    }

    fn tell_of_opening(&mut self) {
        let root = self.task.root;
        let name = proc::comm(Tid(root.0));
        let threads = self.threads.values().filter(|t| t.space.is_some()).count();
        let threads = match threads {
            1 => "1 thread".to_owned(),
            n => format!("{n} threads"),
        };
        self.front
            .started(&format!("recording {name} (pid {root}, {threads})"));
        if self.root_stopped {
            self.front.note(&format!(
                "it is stopped by job control, and makes no calls before it is continued (kill -CONT {root})"
            ));
        }
    }
}
