//! `leaks`: for each stack what it maps, gives back and holds, and what that makes it.
//!
//! `aggregate` counts during the one pass; `verdict` judges; this file has the question and the
//! answer. Names of frames are the views' business: rows carry stack ids.

mod aggregate;
mod verdict;

use maptrail_tracelog::calls::Call;
use maptrail_tracelog::types::{ModuleId, Nanos, SpaceId, StackId, ThreadIx};
use serde::Serialize;

use crate::Error;
use crate::replay::replay;
use crate::timeline::Source;
use crate::world::World;

pub use aggregate::Aggregator;
pub use verdict::Verdict;

/// What rows are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum By {
    /// Call stacks.
    #[default]
    Stack,
    /// The innermost module of the stack that is not the C library.
    Module,
    /// Threads.
    Thread,
    /// Call and sort of memory.
    Kind,
}

/// A question to a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What to group by.
    pub by: By,
    /// Mappings younger than this when their space ends do not count as held.
    pub min_age: Nanos,
    /// At most so many rows; `None` for all.
    pub top: Option<usize>,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A call stack.
    Stack(StackId),
    /// A module; 0 is code outside all modules, and calls without a stack.
    Module(ModuleId),
    /// A thread.
    Thread(ThreadIx),
    /// A call and a sort of memory.
    Kind(#[serde(serialize_with = "call_name")] Call, Memory),
}

fn call_name<S: serde::Serializer>(call: &Call, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(call.name())
}

/// A sort of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// No inode, private.
    Anonymous,
    /// The heap that `brk` moves.
    Heap,
    /// A file, private.
    File,
    /// Shared, be it a file or not.
    Shared,
}

/// What became of the window, in all spaces together, from each space's start to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Mapped, bytes.
    pub reserved_bytes: i64,
    /// Mapped and accessible, bytes.
    pub committed_bytes: i64,
    /// In RAM, bytes: last sample less first, or less 0 for a space that `exec` made.
    pub resident_bytes: i64,
    /// Resident bytes of mappings born inside the window, as last looked at. Where RAM grew, no more
    /// than it grew by.
    pub explained_resident_bytes: u64,
}

/// One stack (or module, thread, kind).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What it is about.
    pub subject: Subject,
    /// What its mappings make it.
    pub verdict: Verdict,
    /// Why, in one line.
    pub evidence: String,
    /// Bytes born inside the window that are still mapped at their space's end, without the young ones.
    pub held_bytes: u64,
    /// The calls that these bytes were born by.
    pub held_mappings: u64,
    /// Bytes still mapped, too, and younger than [`Options::min_age`].
    pub young_bytes: u64,
    /// The calls that these were born by.
    pub young_mappings: u64,
    /// Of the held bytes, those that are accessible.
    pub committed_bytes: u64,
    /// Of the held bytes, those whose pages were looked at.
    pub looked_at_bytes: u64,
    /// Of these, those in RAM; `None` if nobody looked.
    pub resident_bytes: Option<u64>,
    /// Of these, those swapped out.
    pub swapped_bytes: u64,
    /// Bytes mapped, in all; stacks as large as they were seen to grow.
    pub mapped_bytes: u64,
    /// By so many calls.
    pub mapped_calls: u64,
    /// Bytes given back.
    pub released_bytes: u64,
    /// How fast held bytes grow, least squares from its first call to the end.
    pub growth_bytes_per_min: f64,
    /// The time that `growth_bytes_per_min` was taken over, seconds.
    pub growth_span_s: f64,
    /// Its first call, seconds.
    pub first_s: f64,
    /// Its last call, seconds.
    pub last_s: f64,
    /// Median of the bytes that a call makes.
    pub median_bytes: u64,
    /// Spaces in which it mapped.
    pub spaces: u64,
    /// Which, if it was one.
    pub space: Option<SpaceId>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leaks {
    /// The window's length, seconds.
    pub window_s: f64,
    /// What became of the sizes.
    pub growth: Growth,
    /// Worst first.
    pub rows: Vec<Row>,
    /// Rows left out by [`Options::top`].
    pub rows_left_out: usize,
    /// Held bytes of all rows whose verdict is `leak`, also of those left out.
    pub leaked_bytes: u64,
    /// Rows whose verdict is `leak`, also of those left out.
    pub leak_rows: usize,
    /// Held bytes of all rows whose verdict is `undecided`, also of those left out.
    pub undecided_bytes: u64,
    /// Rows whose verdict is `undecided`, also of those left out.
    pub undecided_rows: usize,
}

impl Leaks {
    /// Of these rows, in any order, the worst `top` are shown, and all are added up.
    #[must_use]
    pub fn new(window_s: f64, growth: Growth, mut rows: Vec<Row>, top: Option<usize>) -> Leaks {
        rows.sort_by(|a, b| {
            (a.verdict.cmp(&b.verdict))
                .then(b.held_bytes.cmp(&a.held_bytes))
                .then(b.growth_bytes_per_min.total_cmp(&a.growth_bytes_per_min))
                .then(b.mapped_bytes.cmp(&a.mapped_bytes))
                .then(a.subject.cmp(&b.subject))
        });
        let of = |verdict| {
            let rows = rows.iter().filter(move |row| row.verdict == verdict);
            let held = rows.clone().map(|row| row.held_bytes);
            (held.fold(0, u64::saturating_add), rows.count())
        };
        let (leaked_bytes, leak_rows) = of(Verdict::Leak);
        let (undecided_bytes, undecided_rows) = of(Verdict::Undecided);
        let shown = top.unwrap_or(usize::MAX).min(rows.len());
        let rows_left_out = rows.len() - shown;
        rows.truncate(shown);
        Leaks {
            window_s,
            growth,
            rows,
            rows_left_out,
            leaked_bytes,
            leak_rows,
            undecided_bytes,
            undecided_rows,
        }
    }
}

/// Replays a log and judges its stacks.
///
/// # Errors
/// Those of reading the log.
pub fn leaks(source: &mut impl Source, options: Options) -> Result<(Leaks, World), Error> {
    let mut aggregator = Aggregator::new(source.last(), options);
    let world = replay(source, &mut aggregator)?;
    Ok((aggregator.finish(), world))
}
