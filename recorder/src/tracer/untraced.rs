//! Threads that use a recorded space while nobody records their calls: the evidence for changes that no
//! event explains.

use maptrail_tracelog::record::{Body, NotTraced, Untraced};
use maptrail_tracelog::types::{Nanos, SpaceId, Tid};
use rustc_hash::FxHashMap;

use super::Tracer;
use crate::proc::{self, Turns};

/// Threads that could not be taken up, and are named.
const LISTED: usize = 5;

/// Threads that are not recorded at this moment.
pub type UntracedThreads = FxHashMap<Tid, Begun>;

/// Since when, and what it had done by then.
pub struct Begun {
    space: SpaceId,
    name: String,
    why: NotTraced,
    since: Nanos,
    before: Option<Turns>,
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
        self.untraced.entry(tid).or_insert(begun);
    }

    /// The thread is recorded from here on, or gone, or the window closes.
    pub(super) fn untraced_ends(&mut self, tid: Tid) {
        let Some(begun) = self.untraced.remove(&tid) else {
            return;
        };
        let after = proc::turns(tid);
        let ran_ns = match (begun.before, after) {
            (Some(before), Some(after)) => Some(after.ran_ns.saturating_sub(before.ran_ns)),
            _ => None,
        };
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

    /// The window closes.
    pub(super) fn all_untraced_end(&mut self) {
        self.find_untraced();
        let tids: Vec<Tid> = self.untraced.keys().copied().collect();
        for tid in tids {
            self.untraced_ends(tid);
        }
    }

    /// The space of the attached process.
    pub(super) fn root_space(&self) -> Option<SpaceId> {
        let root = self.task.root;
        let mut fellows = self.threads.values().filter(|thread| thread.pid == root);
        fellows.find_map(|thread| thread.space)
    }

    /// A thread that was not recorded is, from here on.
    pub(super) fn recorded_again(&mut self, tid: Tid) {
        self.untraced_ends(tid);
        let thread = self
            .threads
            .get(&tid)
            .filter(|thread| !thread.is_recorded());
        if let Some(space) = thread.and_then(|thread| thread.space) {
            self.begin_thread(tid, space);
        }
    }

    /// Looks for threads of the attached process that are not traced.
    pub(super) fn find_untraced(&mut self) {
        if self.task.attached.is_none() {
            return;
        }
        let Some(space) = self.root_space() else {
            return;
        };
        for tid in proc::threads_of(self.task.root) {
            self.sign_of_life();
            let known = self.threads.contains_key(&tid) || self.newborn.contains_key(&tid);
            if !known && !self.untraced.contains_key(&tid) && !proc::is_dead(tid) {
                let late = self.refused.contains(&tid) || self.capture.awaits(tid);
                let why = match late {
                    true => NotTraced::Late,
                    false => NotTraced::NotChosen,
                };
                self.untraced_begins(tid, space, why);
            }
        }
    }

    /// Says which threads could not be followed to the end.
    pub(super) fn tell_of_the_left(&mut self) {
        let left: Vec<(Tid, Option<u64>)> = self.capture.left().collect();
        for (tid, transfer) in left.iter().take(LISTED) {
            let name = proc::comm(*tid);
            let why = match transfer {
                Some(number) => format!(
                    "it stood in a call that an interruption would have cut short (number {number})"
                ),
                None => "there was no moment to take it up without harm".to_owned(),
            };
            self.uncovered(format!(
                "the calls of thread {tid} ({name}) were not recorded: {why}"
            ));
        }
        let more = left.len().saturating_sub(LISTED);
        if more > 0 {
            self.uncovered(format!(
                "nor those of {more} other threads: a longer window takes up more of them"
            ));
        }
    }
}
