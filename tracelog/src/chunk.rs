//! Chunks: events, stack nodes and records as the sections of one block, and back.
//!
//! It neither reads nor writes files; `writer` and `reader` do.

use std::io;

use crate::block::{BlockHeader, HAS_CHECKPOINT, HAS_SUMMARY, kind};
use crate::columns::{self, MAX_NODES, NodeEncoder, decode_nodes};
use crate::events::{self, EventEncoder, MAX_EVENTS, decode_events};
use crate::meta;
use crate::record::{Body, CallEvent, Record, StackNode};
use crate::section::{self, BlockBuilder, SectionReader};
use crate::types::{Nanos, StackId, Stamp};
use crate::varint::{self, Cursor, Malformed};

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

impl Chunk {
    /// Empties it and keeps its buffers.
    pub fn clear(&mut self) {
        self.first_ns = Nanos(0);
        self.low_water = Stamp(0);
        self.nodes.clear();
        self.records.clear();
        self.events.clear();
    }
}

/// A chunk, or as much of one as fits a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) first_ns: Nanos,
    pub(crate) low_water: Stamp,
    pub(crate) nodes: &'a [StackNode],
    pub(crate) records: &'a [Record],
    pub(crate) events: &'a [CallEvent],
}

impl<'a> Part<'a> {
    pub(crate) fn whole(chunk: &'a Chunk) -> Part<'a> {
        Part {
            first_ns: chunk.first_ns,
            low_water: chunk.low_water,
            nodes: &chunk.nodes,
            records: &chunk.records,
            events: &chunk.events,
        }
    }

    /// Cuts a part that is too large in two, the first of which goes before the second: nodes
    /// before records before events, since each of them refers to those before. `None` if it need
    /// not, or cannot, be cut.
    pub(crate) fn split(self, too_large: bool) -> Option<(Part<'a>, Part<'a>)> {
        let (nodes, records, events) = if self.nodes.len() > MAX_NODES {
            (MAX_NODES, 0, 0)
        } else if too_large && self.records.len() > 1 {
            (self.nodes.len(), self.records.len() / 2, 0)
        } else if self.events.len() > MAX_EVENTS {
            (self.nodes.len(), self.records.len(), MAX_EVENTS)
        } else {
            return None;
        };
        let (first_nodes, nodes) = self.nodes.split_at(nodes);
        let (first_records, records) = self.records.split_at(records);
        let (first_events, events) = self.events.split_at(events);
        let second = Part {
            nodes,
            records,
            events,
            ..self
        };
        let still_to_come = (second.events.iter().map(|e| e.entry))
            .chain(second.records.iter().map(|r| r.stamp))
            .min();
        let first = Part {
            nodes: first_nodes,
            records: first_records,
            events: first_events,
            low_water: still_to_come.map_or(self.low_water, |s| s.min(self.low_water)),
            ..self
        };
        Some((first, second))
    }

    fn last_ns(&self) -> Nanos {
        let events = self.events.iter().map(|e| e.exit_ns);
        let records = self.records.iter().map(|r| r.ns);
        events.chain(records).fold(self.first_ns, Nanos::max)
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        for record in self.records {
            flags |= match record.body {
                Body::Checkpoint(_) => HAS_CHECKPOINT,
                Body::Summary(_) => HAS_SUMMARY,
                _ => 0,
            };
        }
        flags
    }
}

/// Turns chunks into blocks. Between two chunks it only keeps its buffers.
#[derive(Default)]
pub(crate) struct ChunkEncoder {
    nodes: NodeEncoder,
    events: EventEncoder,
    modules: Vec<u8>,
    records: Vec<u8>,
    one: Vec<u8>,
    raw: Vec<u8>,
}

impl ChunkEncoder {
    /// Encodes the records of a part, which [`ChunkEncoder::encode`] then writes; says whether they
    /// fit a block.
    pub(crate) fn prepare(&mut self, part: &Part<'_>) -> io::Result<bool> {
        self.modules.clear();
        self.records.clear();
        let (mut modules_next, mut records_next) = (0, 0);
        for (i, record) in part.records.iter().enumerate() {
            self.one.clear();
            let kind = meta::put_record(&mut self.one, record).map_err(unencodable)?;
            let (out, next) = match record.body {
                Body::File(..) | Body::Module(..) | Body::ModuleBase { .. } => {
                    (&mut self.modules, &mut modules_next)
                }
                _ => (&mut self.records, &mut records_next),
            };
            // The record's place among all the records of the chunk, as a step.
            varint::put(out, (i - *next) as u64);
            *next = i + 1;
            out.push(kind);
            varint::put(out, self.one.len() as u64);
            out.extend_from_slice(&self.one);
        }
        Ok(self.modules.len().max(self.records.len()) <= section::MAX_RAW)
    }

    /// Builds the block of the part that was prepared last. `first_node` is the id of its first node.
    pub(crate) fn encode<'b>(
        &mut self,
        part: &Part<'_>,
        first_node: u32,
        sequence: u32,
        builder: &'b mut BlockBuilder,
    ) -> io::Result<(BlockHeader, &'b [u8])> {
        let present = [
            !part.nodes.is_empty(),
            !self.modules.is_empty(),
            !self.records.is_empty(),
            !part.events.is_empty(),
        ];
        builder.start(present.iter().filter(|p| **p).count());
        if !part.nodes.is_empty() {
            self.raw.clear();
            self.nodes.encode(first_node, part.nodes, &mut self.raw);
            let least = columns::least_stored(part.nodes.len());
            builder.add(section::id::STACKS, &self.raw, least)?;
        }
        if !self.modules.is_empty() {
            builder.add(section::id::MODULES, &self.modules, 0)?;
        }
        if !self.records.is_empty() {
            builder.add(section::id::RECORDS, &self.records, 0)?;
        }
        if !part.events.is_empty() {
            self.raw.clear();
            self.events.encode(part.events, &mut self.raw);
            let least = events::least_stored(part.events.len());
            builder.add(section::id::EVENTS, &self.raw, least)?;
        }
        let mut header = BlockHeader {
            kind: kind::CHUNK,
            flags: part.flags(),
            sequence,
            first_ns: part.first_ns.0,
            last_ns: part.last_ns().0,
            low_water: part.low_water.0,
            ..BlockHeader::default()
        };
        let block = builder.finish(&mut header)?;
        Ok((header, block))
    }
}

fn unencodable(_: Malformed) -> io::Error {
    io::Error::other("a record cannot be encoded")
}

/// What a decoded chunk holds besides its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Id of the first node; 0 if it has no stack section.
    pub(crate) first_node: StackId,
    /// Records left out because this version does not know them.
    pub(crate) unknown_records: u64,
    /// Events left out for the same reason.
    pub(crate) unknown_events: u64,
}

/// Decodes a chunk's payload into `chunk`, all of it or (on an error) nothing.
pub(crate) fn decode(
    header: &BlockHeader,
    payload: &[u8],
    sections: &mut SectionReader,
    chunk: &mut Chunk,
) -> Result<Decoded, Malformed> {
    chunk.clear();
    let result = decode_sections(payload, sections, chunk);
    match result {
        Ok(_) => {
            chunk.first_ns = Nanos(header.first_ns);
            chunk.low_water = Stamp(header.low_water);
        }
        Err(Malformed) => chunk.clear(),
    }
    result
}

fn decode_sections(
    payload: &[u8],
    sections: &mut SectionReader,
    chunk: &mut Chunk,
) -> Result<Decoded, Malformed> {
    let mut decoded = Decoded::default();
    let mut seen = 0_u64;
    let mut records: Vec<(u64, Record)> = Vec::new();
    sections.read(payload, |section| {
        let bit = 1_u64.checked_shl(u32::from(section.id)).unwrap_or(0);
        if seen & bit != 0 {
            return Err(Malformed);
        }
        seen |= bit;
        match section.id {
            section::id::STACKS => decoded.first_node = decode_nodes(section, &mut chunk.nodes)?,
            section::id::EVENTS => {
                decoded.unknown_events = decode_events(section, &mut chunk.events)?;
            }
            section::id::MODULES | section::id::RECORDS => {
                decoded.unknown_records += decode_records(section.raw, &mut records)?;
            }
            _ => {}
        }
        Ok(())
    })?;
    records.sort_by_key(|(place, _)| *place);
    chunk
        .records
        .extend(records.into_iter().map(|(_, record)| record));
    Ok(decoded)
}

/// Appends a section's records with their places; returns how many are unknown to this version.
fn decode_records(raw: &[u8], records: &mut Vec<(u64, Record)>) -> Result<u64, Malformed> {
    let mut cursor = Cursor(raw);
    let mut place = 0_u64;
    let mut unknown = 0;
    while !cursor.is_empty() {
        place = place.checked_add(cursor.varint()?).ok_or(Malformed)?;
        let kind = cursor.u8()?;
        match meta::take_record(kind, cursor.prefixed()?.0) {
            Some(record) => records.push((place, record)),
            None => unknown += 1,
        }
        place = place.checked_add(1).ok_or(Malformed)?;
    }
    Ok(unknown)
}
