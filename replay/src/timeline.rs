//! Puts effects in order: from a log's chunks, whose events stand in the order in which they *ended*,
//! to the order in which the kernel *acted*.
//!
//! Threads' calls overlap, and a tracer sees their ends in another order than the kernel ran them:
//! thread 1 unmaps A, the kernel hands A to thread 2's `mmap`, and thread 2's exit is seen first. So a
//! release takes its place at its entry stamp and an acquisition at its exit stamp. What is held back
//! is bounded by the log's own low-water mark: once a chunk says that nothing with a smaller stamp
//! comes later, everything below it can go.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::io;

use maptrail_tracelog::record::{Body, CallEvent, Record};
use maptrail_tracelog::types::{Nanos, StackId, Stamp};
use maptrail_tracelog::writer::Chunk;

use crate::calls::phases;

/// One thing that happens, in order.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// A call releases.
    Entry(&'a CallEvent),
    /// A call acquires, or ends without having done either.
    Exit(&'a CallEvent),
    /// A record takes its place; for a checkpoint, with the calls in flight that it names.
    Record(&'a Record, &'a [CallEvent]),
}

/// A step that had to wait for a later chunk.
#[derive(Debug)]
enum Held {
    Entry(CallEvent),
    Exit(CallEvent),
    Record(Record),
}

#[derive(Debug)]
struct Waiting {
    stamp: Stamp,
    /// Order of arrival, which decides between records of equal stamp.
    arrival: u64,
    held: Box<Held>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    /// The smallest stamp is the greatest, for a heap that gives the greatest first.
    fn cmp(&self, other: &Waiting) -> Ordering {
        (other.stamp, other.arrival).cmp(&(self.stamp, self.arrival))
    }
}

/// Where an effect lies in its chunk.
#[derive(Clone, Copy, Debug)]
enum Place {
    Entry(u32),
    Exit(u32),
    Record(u32),
}

/// The reordering buffer.
#[derive(Debug, Default)]
pub struct Timeline {
    waiting: BinaryHeap<Waiting>,
    arrivals: u64,
    /// The stamps of the chunk at hand, and what they belong to.
    keys: Vec<(Stamp, Place)>,
    /// Calls whose release was told and whose end lies past the low-water mark: a checkpoint still to
    /// come may find them in flight.
    released: Vec<CallEvent>,
}

impl Timeline {
    /// Nothing seen yet.
    #[must_use]
    pub fn new() -> Timeline {
        Timeline::default()
    }

    /// How many steps wait for a later chunk.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a chunk and tells every step that nothing can precede any more. `tell` returns whether
    /// to go on; the result is the same. The chunk's records may be moved out.
    pub fn feed(&mut self, chunk: &mut Chunk, tell: &mut impl FnMut(Step<'_>) -> bool) -> bool {
        self.collect(chunk);
        let keys = std::mem::take(&mut self.keys);
        let low_water = chunk.low_water;
        let ready = keys.partition_point(|(stamp, _)| *stamp < low_water);
        for &(stamp, place) in keys.get(..ready).unwrap_or_default() {
            if !self.tell_waiting(stamp, &chunk.events, tell) || !self.tell_at(place, chunk, tell) {
                return false;
            }
        }
        if !self.tell_waiting(low_water, &chunk.events, tell) {
            return false;
        }
        for &(stamp, place) in keys.get(ready..).unwrap_or_default() {
            self.hold(stamp, place, chunk);
        }
        self.released.retain(|event| event.exit >= low_water);
        let late = chunk
            .events
            .iter()
            .rev()
            .take_while(|e| e.exit >= low_water);
        self.released
            .extend(late.filter(|e| e.entry < low_water && phases(e).entry));
        self.keys = keys;
        true
    }

    /// The log is at its end: tells all that waited.
    pub fn finish(&mut self, tell: &mut impl FnMut(Step<'_>) -> bool) -> bool {
        self.tell_waiting(Stamp(u64::MAX), &[], tell)
    }

    /// Lists the chunk's effects and records in order of their stamps.
    fn collect(&mut self, chunk: &Chunk) {
        self.keys.clear();
        for (at, record) in (0..).zip(&chunk.records) {
            self.keys.push((record.stamp, Place::Record(at)));
        }
        for (at, event) in (0..).zip(&chunk.events) {
            let phases = phases(event);
            if phases.entry {
                self.keys.push((event.entry, Place::Entry(at)));
            }
            if phases.exit {
                self.keys.push((event.exit, Place::Exit(at)));
            }
        }
        // Stable, so that records of equal stamp stay in the order in which they were written; and
        // quick, because most of it is in order already.
        self.keys.sort_by_key(|(stamp, _)| *stamp);
    }

    fn tell_at(
        &self,
        place: Place,
        chunk: &Chunk,
        tell: &mut impl FnMut(Step<'_>) -> bool,
    ) -> bool {
        match place {
            Place::Entry(at) => chunk
                .events
                .get(at as usize)
                .is_none_or(|e| tell(Step::Entry(e))),
            Place::Exit(at) => chunk
                .events
                .get(at as usize)
                .is_none_or(|e| tell(Step::Exit(e))),
            Place::Record(at) => chunk.records.get(at as usize).is_none_or(|record| {
                let in_flight = self.in_flight(record, &chunk.events);
                tell(Step::Record(record, &in_flight))
            }),
        }
    }

    /// Tells what waited and has a stamp below `limit` (or, at the end of the log, any stamp).
    fn tell_waiting(
        &mut self,
        limit: Stamp,
        events: &[CallEvent],
        tell: &mut impl FnMut(Step<'_>) -> bool,
    ) -> bool {
        while let Some(next) = self.waiting.peek()
            && (next.stamp < limit || limit == Stamp(u64::MAX))
        {
            let Some(next) = self.waiting.pop() else {
                break;
            };
            let go_on = match &*next.held {
                Held::Entry(event) => {
                    self.released.push(*event);
                    tell(Step::Entry(event))
                }
                Held::Exit(event) => tell(Step::Exit(event)),
                Held::Record(record) => {
                    let in_flight = self.in_flight(record, events);
                    tell(Step::Record(record, &in_flight))
                }
            };
            if !go_on {
                return false;
            }
        }
        true
    }

    fn hold(&mut self, stamp: Stamp, place: Place, chunk: &mut Chunk) {
        let held = match place {
            Place::Entry(at) => chunk.events.get(at as usize).copied().map(Held::Entry),
            Place::Exit(at) => chunk.events.get(at as usize).copied().map(Held::Exit),
            Place::Record(at) => chunk.records.get_mut(at as usize).map(|record| {
                let taken = Record {
                    stamp: record.stamp,
                    ns: record.ns,
                    body: Body::Note(String::new()),
                };
                Held::Record(std::mem::replace(record, taken))
            }),
        };
        if let Some(held) = held {
            self.arrivals += 1;
            self.waiting.push(Waiting {
                stamp,
                arrival: self.arrivals,
                held: Box::new(held),
            });
        }
    }

    /// The calls that a checkpoint found in flight, with what became of them.
    fn in_flight(&self, record: &Record, events: &[CallEvent]) -> Vec<CallEvent> {
        let Body::Checkpoint(checkpoint) = &record.body else {
            return Vec::new();
        };
        if checkpoint.in_flight.is_empty() {
            return Vec::new();
        }
        let waiting = self.waiting.iter().filter_map(|w| match &*w.held {
            Held::Entry(event) | Held::Exit(event) => Some(event),
            Held::Record(_) => None,
        });
        let mut found: Vec<CallEvent> = events
            .iter()
            .chain(&self.released)
            .chain(waiting)
            .filter(|event| {
                checkpoint
                    .in_flight
                    .iter()
                    .any(|call| call.thread == event.thread && call.entry == event.entry)
            })
            .copied()
            .collect();
        found.sort_by_key(|event| event.entry);
        found.dedup_by_key(|event| event.entry);
        found
    }
}

/// Where chunks come from: a log file, or a list in memory.
pub trait Source {
    /// Fills `chunk` with the next one; `false` at the end.
    ///
    /// # Errors
    /// Those of reading. Damage is no error: a source skips it and counts it.
    fn next_chunk(&mut self, chunk: &mut Chunk) -> io::Result<bool>;

    /// The id of the first stack node of the chunk that was read last: larger than expected after a
    /// chunk that is missing.
    fn first_node(&self) -> StackId;

    /// The last instant of the log: what the window's length is measured by.
    fn last(&self) -> Nanos;

    /// Goes back to the first chunk.
    fn rewind(&mut self);
}

/// A log in memory.
#[derive(Clone, Debug)]
pub struct ChunkList {
    chunks: Vec<Chunk>,
    next: usize,
    first_node: u32,
    next_node: u32,
}

impl ChunkList {
    /// A log of these chunks.
    #[must_use]
    pub fn new(chunks: Vec<Chunk>) -> ChunkList {
        ChunkList {
            chunks,
            next: 0,
            first_node: 1,
            next_node: 1,
        }
    }
}

impl Source for ChunkList {
    fn next_chunk(&mut self, chunk: &mut Chunk) -> io::Result<bool> {
        let Some(next) = self.chunks.get(self.next) else {
            return Ok(false);
        };
        chunk.clone_from(next);
        self.next += 1;
        self.first_node = self.next_node;
        let nodes = u32::try_from(next.nodes.len()).unwrap_or(u32::MAX);
        self.next_node = self.next_node.saturating_add(nodes);
        Ok(true)
    }

    fn first_node(&self) -> StackId {
        StackId(self.first_node)
    }

    fn last(&self) -> Nanos {
        let events = self
            .chunks
            .iter()
            .flat_map(|c| &c.events)
            .map(|e| e.exit_ns);
        let records = self.chunks.iter().flat_map(|c| &c.records).map(|r| r.ns);
        events.chain(records).max().unwrap_or_default()
    }

    fn rewind(&mut self) {
        self.next = 0;
        self.next_node = 1;
    }
}
