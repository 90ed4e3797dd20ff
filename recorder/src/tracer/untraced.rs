//! Threads that use a recorded space while nobody records their calls: the evidence for changes that no
//! event explains.

use maptrail_tracelog::record::{Body, NotTraced, Origin, SpaceEnd, Untraced};
use maptrail_tracelog::types::{Nanos, Pid, SpaceId, Tid};
use rustc_hash::FxHashMap;
use syscalls::x86_64::Sysno;

use super::Tracer;
use super::state::{Pending, Thread};
use super::window::Window;
use crate::proc::{self, Doing, Turns};
use crate::sys::ptrace;
use crate::sys::wait::{self, Event, Stops};
use crate::unwind::AddressMap;

/// Threads that could not be taken up, and are named.
const LISTED: usize = 5;

/// Threads that are not recorded at this moment.
#[derive(Default)]
pub struct UntracedThreads {
    begun: FxHashMap<Tid, Begun>,
    /// What threads had done when they were last looked for, or when they are first.
    seen: FxHashMap<Tid, Option<Turns>>,
    /// When that was.
    looked: Nanos,
    /// The space that threads live in which were not chosen: they count as one of its threads.
    lives_in: Option<SpaceId>,
    /// Threads of other processes that share the attached one's space.
    sharers: Vec<Tid>,
}

/// Since when, and what it had done by then.
struct Begun {
    space: SpaceId,
    name: String,
    why: NotTraced,
    since: Nanos,
    before: Option<Turns>,
}

impl Begun {
    /// CPU time that the thread used since, nanoseconds; `None` if nobody can tell.
    fn ran_ns(&self, tid: Tid) -> Option<u64> {
        let (before, after) = (self.before?, proc::turns(tid)?);
        let ran_ns = after.ran_ns.saturating_sub(before.ran_ns);
        // The time of a turn is counted at its end, or at the next tick of the clock.
        let counted = ran_ns > 0
            || (after.turns == before.turns && !matches!(proc::doing(tid), Ok(Doing::Runs)));
        counted.then_some(ran_ns)
    }
}

impl Tracer {
    /// From now on a thread of a space is not recorded.
    pub(super) fn untraced_begins(&mut self, tid: Tid, space: SpaceId, why: NotTraced) {
        let begun = Begun {
            space,
            name: proc::comm(tid),
            why,
            since: self.now(),
            before: proc::turns(tid),
        };
        self.untraced.begun.entry(tid).or_insert(begun);
    }

    /// The same for one that went unnoticed since threads were last looked for: it may have run since
    /// then, and if it was not there then it began with nothing.
    pub(super) fn was_untraced(&mut self, tid: Tid, space: SpaceId, why: NotTraced) {
        let before = self.untraced.seen.remove(&tid);
        let begun = Begun {
            space,
            name: proc::comm(tid),
            why,
            since: self.untraced.looked,
            before: before.unwrap_or(Some(Turns::default())),
        };
        self.untraced.begun.entry(tid).or_insert(begun);
    }

    /// The first checkpoint of a running program is about to be taken: what its threads do from here on
    /// is seen, or evidence.
    pub(super) fn remember_turns(&mut self) {
        self.untraced.looked = self.now();
        let fellows = proc::threads_of(self.task.root).into_iter();
        let fellows = fellows.filter(|tid| !self.takes_part(*tid));
        let seen: Vec<(Tid, Option<Turns>)> = fellows.map(|tid| (tid, proc::turns(tid))).collect();
        self.untraced.seen.extend(seen);
    }

    /// Whether every call of a thread is seen.
    fn takes_part(&self, tid: Tid) -> bool {
        let thread = self.threads.get(&tid);
        thread.is_some_and(|t| !matches!(t.pending, Some(Pending::Early)))
            && !self.capture.awaits(tid)
    }

    /// The thread is recorded from here on, or gone, or the window closes.
    pub(super) fn untraced_ends(&mut self, tid: Tid) {
        let Some(begun) = self.untraced.begun.remove(&tid) else {
            return;
        };
        let ran_ns = begun.ran_ns(tid);
        // A thread that did not run made no call.
        if ran_ns != Some(0) {
            self.record(Body::Untraced(Untraced {
                space: begun.space,
                tid,
                name: begun.name,
                why: begun.why,
                since: begun.since,
                ran_ns,
            }));
        }
    }

    /// The window closes, and the last checkpoints are taken: what was done after them matters not.
    pub(super) fn all_untraced_end(&mut self) {
        let tids: Vec<Tid> = self.untraced.begun.keys().copied().collect();
        for tid in tids {
            self.untraced_ends(tid);
        }
    }

    /// The space of the attached process.
    pub(super) fn root_space(&self) -> Option<SpaceId> {
        let root = self.task.root;
        let mut fellows = self.threads.values().filter(|thread| thread.pid == root);
        let traced = || fellows.find_map(|thread| thread.space.filter(|_| !thread.exiting));
        self.untraced.lives_in.or_else(traced)
    }

    /// Whether a space has threads that were not chosen.
    pub(super) fn has_unchosen(&self, space: SpaceId) -> bool {
        self.untraced.lives_in == Some(space)
    }

    /// Threads that are not chosen may live in this space, after all that are.
    pub(super) fn unchosen_live_in(&mut self, id: SpaceId) {
        let chosen = self
            .task
            .attached
            .as_ref()
            .is_some_and(|a| !a.choice.takes_all());
        if let Some(space) = self.spaces.get_mut(&id).filter(|_| chosen) {
            space.threads += 1;
            self.untraced.lives_in = Some(id);
        }
    }

    /// If one of them has run another program, nobody told of it: the space that they lived in is gone.
    pub(super) fn look_for_new_program(&mut self) {
        let Some(id) = self.untraced.lives_in else {
            return;
        };
        // A thread that is followed tells.
        let lives = |thread: &Thread| thread.space == Some(id) && !thread.exiting;
        if self.threads.values().any(lives) {
            return;
        }
        let vmas = self
            .spaces
            .get(&id)
            .map(|space| space.maps.all(&mut self.files));
        if !vmas.is_some_and(|vmas| vmas.is_ok_and(|vmas| !vmas.is_empty())) {
            self.unchosen_are_gone();
            self.end_space(id, SpaceEnd::Exec);
        }
    }

    /// The attached process ends, or runs another program: they are gone.
    pub(super) fn unchosen_are_gone(&mut self) {
        let Some(id) = self.untraced.lives_in.take() else {
            return;
        };
        let begun = self.untraced.begun.iter();
        let there = begun.filter(|(_, begun)| begun.space == id);
        let gone: Vec<Tid> = there.map(|(tid, _)| *tid).collect();
        for tid in gone {
            self.untraced_ends(tid);
        }
        if let Some(space) = self.spaces.get_mut(&id) {
            space.threads = space.threads.saturating_sub(1);
        }
    }

    /// Finds the threads of other processes that share the space (`vfork`, `CLONE_VM`).
    pub(super) fn find_sharers(&mut self) {
        let Some(witness) = self.living_thread() else {
            return;
        };
        let root = self.task.root;
        let sharers = proc::processes()
            .filter(|pid| *pid != root && ptrace::same_space(Tid(pid.0), witness) == Some(true));
        self.untraced.sharers = sharers.flat_map(proc::threads_of).collect();
    }

    /// A thread of the attached process: what is dead has no space.
    fn living_thread(&self) -> Option<Tid> {
        let mut threads = proc::threads_of(self.task.root).into_iter();
        threads.find(|tid| !proc::is_dead(*tid))
    }

    /// A thread's `clone` has made process `child` that shares its space, and that nobody follows. It may
    /// have run, and even ended, before the call came back.
    pub(super) fn made_sharer(&mut self, maker: Tid, child: i64, since: Nanos) {
        let space = self.threads.get(&maker).and_then(|thread| thread.space);
        if let (Ok(child @ 1..), Some(space)) = (u32::try_from(child), space) {
            self.record(Body::Untraced(Untraced {
                space,
                tid: Tid(child),
                name: proc::comm(maker),
                why: NotTraced::OtherProcess,
                since,
                ran_ns: None,
            }));
        }
    }

    /// A thread that was not recorded is, from here on.
    pub(super) fn recorded_again(&mut self, tid: Tid) {
        self.untraced_ends(tid);
        let Some(thread) = self.threads.get(&tid).filter(|t| !t.is_recorded()) else {
            return;
        };
        let (pid, space) = (thread.pid, thread.space);
        let joins = pid == self.task.root && matches!(self.window, Window::Open);
        let space = space.or_else(|| joins.then(|| self.join_root_space(tid, pid)).flatten());
        if let Some(space) = space {
            self.begin_thread(tid, space);
        }
    }

    /// A thread of the attached process takes part in its space; in a new one, if all that were followed are
    /// gone, and their space with them.
    fn join_root_space(&mut self, tid: Tid, pid: Pid) -> Option<SpaceId> {
        if let Some(id) = self.root_space() {
            self.spaces.get_mut(&id)?.threads += 1;
            return Some(id);
        }
        let id = self.new_space(tid, pid, Origin::Attach, AddressMap::new())?;
        self.unchosen_live_in(id);
        Some(id)
    }

    /// A thread is traced from its birth, whoever saw it before that was told of.
    pub(super) fn was_traced(&mut self, tid: Tid) {
        self.untraced.begun.remove(&tid);
    }

    /// Threads whose end nobody told of: an exec by one that is not traced leaves no zombie of the first.
    pub(super) fn look_for_the_dead(&mut self) {
        let exiting = self.threads.iter().filter(|(_, thread)| thread.exiting);
        let exiting: Vec<Tid> = exiting.map(|(tid, _)| *tid).collect();
        for tid in exiting {
            match wait::now(tid, Stops::Peeked) {
                Ok(Event::NoneLeft) => self.thread_ended(tid, 0),
                // To ask is to take it.
                Ok(Event::Ended(tid, status)) => self.thread_ended(tid, status),
                _ => {}
            }
        }
    }

    /// Looks for threads that use the space of the attached process and are not traced: of its own, and of
    /// other processes that share it.
    pub(super) fn find_untraced(&mut self) {
        let Some(space) = self.root_space().filter(|_| self.task.attached.is_some()) else {
            return;
        };
        let now = self.now();
        for tid in proc::threads_of(self.task.root) {
            self.sign_of_life();
            if !self.is_known(tid) {
                let late = self.refused.contains(&tid) || self.capture.awaits(tid);
                let why = match late {
                    true => NotTraced::Late,
                    false => NotTraced::NotChosen,
                };
                self.was_untraced(tid, space, why);
            }
        }
        if let Some(witness) = self.living_thread() {
            // A child of vfork has a space of its own soon.
            let shares = |tid: &Tid| ptrace::same_space(*tid, witness) == Some(true);
            self.untraced.sharers.retain(shares);
        }
        for tid in self.untraced.sharers.clone() {
            if !self.is_known(tid) {
                self.was_untraced(tid, space, NotTraced::OtherProcess);
            }
        }
        self.untraced.looked = now;
        self.untraced.seen.clear();
    }

    fn is_known(&self, tid: Tid) -> bool {
        self.threads.contains_key(&tid)
            || self.newborn.contains_key(&tid)
            || self.untraced.begun.contains_key(&tid)
            || proc::is_dead(tid)
            // Just made by one that is traced, and not told of yet.
            || proc::tracer_of(tid) == Some(Pid(std::process::id()))
    }

    /// Says which threads could not be taken up to the end, of those that ran meanwhile.
    pub(super) fn tell_of_the_left(&mut self) {
        let ran = |(tid, number): (Tid, Option<u64>)| {
            let begun = self.untraced.begun.get(&tid)?;
            let name = &begun.name;
            let call = number.and_then(|n| Some(Sysno::new(usize::try_from(n).ok()?)?.name()));
            let call = call.map_or_else(String::new, |call| format!(" in {call}"));
            (begun.ran_ns(tid) != Some(0)).then(|| format!("{tid} ({name}{call})"))
        };
        let left: Vec<String> = self.capture.left().filter_map(ran).collect();
        let more = left.len().saturating_sub(LISTED);
        let listed = left.get(..LISTED).unwrap_or(&left).join(", ");
        let and_more = match more {
            0 => String::new(),
            _ => format!(" and {more} more"),
        };
        if !left.is_empty() {
            self.uncovered(format!(
                "no moment came to take up threads {listed}{and_more} without breaking their calls off: \
                 their memory calls are not in the log"
            ));
        }
    }
}
