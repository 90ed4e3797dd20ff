//! Collects stops: all that wait are taken together, and served in turn.

use std::io;

use maptrail_tracelog::types::Tid;

use super::Tracer;
use crate::mechanism;
use crate::sys::ptrace::Stopped;
use crate::sys::timer;
use crate::sys::wait::{self, Event, Stop, Stops};

/// Who waits longer than this for a stop had none waiting, nanoseconds.
const ASKED_NS: u64 = 100_000;
/// After so many stops in a batch, if there are more threads than that, each is asked by itself.
const ASKED_OF_ALL: usize = 8;
const ASKED_EACH: usize = 100;

impl Tracer {
    /// Serves what has stopped by now. For between the steps of long work, during which nobody is to wait.
    pub(super) fn serve_waiting(&mut self) -> io::Result<()> {
        loop {
            match self.next_event(false)? {
                Event::Stopped(stopped, stop) => self.serve(stopped, stop),
                Event::Ended(tid, status) => self.thread_ended(tid, status),
                Event::Interrupted | Event::Nothing | Event::NoneLeft => return Ok(()),
            }
            // Busy threads would keep us here for ever.
            if self.batch.is_empty() {
                return Ok(());
            }
        }
    }

    /// The next event; waits for one if `block`. With several threads all that wait are collected first,
    /// however many, and served in turn: the kernel always shows the first in its list, and busy ones
    /// would starve the others.
    pub(super) fn next_event(&mut self, block: bool) -> io::Result<Event> {
        if let Some((stopped, stop)) = self.batch.pop_front() {
            return Ok(Event::Stopped(stopped, stop));
        }
        self.batches += 1;
        let stops = mechanism::stops(self.task.mechanism);
        let asked = timer::monotonic_ns();
        let first = wait::next(block, stops)?;
        let now = timer::monotonic_ns();
        // What had stopped before it was asked for may have stood since the last batch was served.
        self.batch_since = match now - asked > ASKED_NS {
            true => now,
            false => self.served_until.max(self.batch_since),
        };
        if self.threads.len() < 2 {
            return Ok(first);
        }
        let mut event = first;
        loop {
            match event {
                Event::Stopped(stopped, stop) => {
                    if !self.collect(stopped, stop, stops) {
                        break;
                    }
                }
                other if self.batch.is_empty() => return Ok(other),
                Event::Ended(tid, status) => self.ended_in_batch(tid, status),
                Event::Interrupted | Event::Nothing | Event::NoneLeft => break,
            }
            if self.batch.len() == ASKED_OF_ALL && self.threads.len() > ASKED_EACH {
                self.collect_from_each(stops)?;
                break;
            }
            event = wait::next(false, stops)?;
        }
        Ok(match self.batch.pop_front() {
            Some((stopped, stop)) => Event::Stopped(stopped, stop),
            None => Event::Nothing,
        })
    }

    /// The kernel looks through all threads for each that has stopped; where many have, it is quicker to
    /// ask after each once.
    fn collect_from_each(&mut self, stops: Stops) -> io::Result<()> {
        let tids: Vec<Tid> = self.threads.keys().copied().collect();
        for tid in tids {
            match wait::now(tid, stops)? {
                Event::Stopped(stopped, stop) => drop(self.collect(stopped, stop, stops)),
                Event::Ended(tid, status) => self.ended_in_batch(tid, status),
                Event::Interrupted | Event::Nothing | Event::NoneLeft => {}
            }
        }
        Ok(())
    }

    /// Puts a stop into the batch. False if it is still on the kernel's list.
    fn collect(&mut self, stopped: Stopped, stop: Stop, stops: Stops) -> bool {
        let taken = match (stops, stop) {
            (Stops::Taken, _) => Some(stop),
            // A peeked stop that carries a signal stays on the list until it is resumed.
            (Stops::Peeked, Stop::Signal(_)) => {
                self.put_by(stopped, stop);
                return false;
            }
            (Stops::Peeked, _) => wait::take(&stopped),
        };
        if let Some(stop) = taken {
            self.put_by(stopped, stop);
        }
        true
    }

    fn ended_in_batch(&mut self, tid: Tid, status: i32) {
        self.batch.retain(|(stopped, _)| stopped.tid() != tid);
        self.thread_ended(tid, status);
    }

    /// The thread will be held: its stop must not be shown again. Gives what was taken: SIGKILL may have
    /// brought the thread to its exit meanwhile, and nobody else tells of that then.
    pub(super) fn take(&self, stopped: &Stopped) -> Option<Stop> {
        match mechanism::stops(self.task.mechanism) {
            Stops::Peeked => wait::take(stopped),
            Stops::Taken => None,
        }
    }

    /// Keeps a stop until its turn. An earlier one of the same thread is void: SIGKILL woke the
    /// thread, and now it stands at its exit.
    fn put_by(&mut self, stopped: Stopped, stop: Stop) {
        self.batch.retain(|(other, _)| other.tid() != stopped.tid());
        self.batch.push_back((stopped, stop));
    }
}
