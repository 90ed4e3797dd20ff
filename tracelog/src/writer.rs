//! Writes a log, chunk by chunk.

use crate::record::{CallEvent, Record, StackNode};
use crate::types::{Nanos, Stamp};

/// What is written at one go: either all of it reads back, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Time of its first event or record.
    pub first_ns: Nanos,
    /// No effect with a smaller stamp comes in a later chunk: the entry stamp of the oldest call
    /// still in flight, or the next stamp to be given out.
    pub low_water: Stamp,
    /// New stack nodes, in order; the log numbers them on from the chunk before (first is 1).
    pub nodes: Vec<StackNode>,
    /// Records, ascending by stamp.
    pub records: Vec<Record>,
    /// Events, ascending by exit stamp.
    pub events: Vec<CallEvent>,
}
