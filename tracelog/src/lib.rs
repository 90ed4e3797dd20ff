//! The log format of maptrail: what a recording says, and how it is written down.
//!
//! This crate knows neither ptrace nor ELF, only [`Read`](std::io::Read) and
//! [`Write`](std::io::Write). It has the plain words and records ([`types`], [`record`]), the table of
//! memory calls ([`calls`]), a [`writer`] and a [`reader`].
//!
//! ```
//! use std::io::Cursor;
//!
//! use maptrail_tracelog::reader::{Chunk, LogReader};
//! use maptrail_tracelog::record::{Body, Header, Mechanism, Record};
//! use maptrail_tracelog::types::{Nanos, Stamp};
//! use maptrail_tracelog::writer::LogWriter;
//!
//! let header = Header {
//!     writer: "example 1.0".into(),
//!     host: "here".into(),
//!     kernel: "6.1".into(),
//!     command: vec!["true".into()],
//!     mechanism: Mechanism::Seccomp,
//!     wall_start_ns: 1_700_000_000_000_000_000,
//!     monotonic_start_ns: 42,
//!     page_size: 4096,
//! };
//! let mut chunk = Chunk::default();
//! chunk.records.push(Record {
//!     stamp: Stamp(1),
//!     ns: Nanos(500),
//!     body: Body::Note("hello".into()),
//! });
//!
//! let mut log = LogWriter::create(Vec::new(), &header)?;
//! log.write_chunk(&chunk)?;
//! log.finish()?;
//!
//! let mut log = LogReader::open(Cursor::new(log.into_inner()))?;
//! assert_eq!(log.header().host, "here");
//! let mut back = Chunk::default();
//! while log.next_chunk(&mut back)? {
//!     assert_eq!(back, chunk);
//! }
//! assert_eq!(log.health().damaged_blocks, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The format
//!
//! This is the normative text. All fixed-width numbers are little endian. *Varint* without another word
//! is LEB128: seven bits a byte, low ones first, the top bit set on all bytes but the last, at most ten
//! bytes. *Zigzag* maps signed to unsigned, 0, -1, 1, -2, ... to 0, 1, 2, 3, ...; a *step* from `a` to `b`
//! is the zigzag of `b - a` modulo 2^64 (as a signed 64-bit number), so that any two values have one.
//! CRC is CRC-32C (Castagnoli, as in iSCSI).
//!
//! A log is: 8 bytes `MAPTRAIL`; `u16` major version (1); `u16` minor version (0); then blocks, one
//! after the other, the first of which is the header. A log may end anywhere: a reader takes the whole
//! blocks before the cut.
//!
//! ## Blocks
//!
//! | bytes | | |
//! |---|---|---|
//! | 0..4 | mark | `f5 4d 54 fa` |
//! | 4 | kind | see below; a reader passes over kinds that it does not know |
//! | 5 | flags | of a chunk: bit 0, it holds a checkpoint; bit 1, it holds the summary; else 0 |
//! | 6..8 | reserved | written as 0, not looked at |
//! | 8..12 | `u32` sequence | 0 for the header, counting up by one |
//! | 12..16 | `u32` payload length | bytes after these 48 |
//! | 16..24 | `u64` first time | of a chunk: time of its first event or record, ns in the window |
//! | 24..32 | `u64` last time | of a chunk: time of its last event or record |
//! | 32..40 | `u64` low water | of a chunk: no effect with a smaller stamp comes in a later chunk |
//! | 40..44 | `u32` payload CRC | |
//! | 44..48 | `u32` header CRC | of bytes 0..44 |
//!
//! Blocks of other kinds than chunk repeat the last time and low water of the block before (the header
//! has 0). After damage a reader looks for the next place where mark and header CRC are right and the
//! payload fits the file. A block whose payload CRC is wrong is passed over by its length.
//!
//! | kind | | payload |
//! |---|---|---|
//! | 1 | header | a [`Header`](record::Header) as a *value* (below) |
//! | 2 | chunk | sections |
//! | 3 | names | sections: names |
//! | 4 | index | sections: index |
//! | 5 | end | `u64` offset of the index block in the log; stands directly behind it |
//! | 6 | void | whatever an incomplete block left behind; its CRC is not checked |
//!
//! ## Sections
//!
//! A payload of sections begins with a table: `u8` count (at most 16), then for each section `u8` id,
//! `u8` encoding, `u32` stored length, `u32` raw length. The sections' stored bytes follow in the same
//! order, and end with the payload. Encoding 0: stored as is. Encoding 1: zstd frames.
//!
//! A small log cannot ask for much memory. The raw length is at most 64 MiB; up to 1 MiB it is at most 512
//! times the stored length, above at most 128 times. A section of events has at most 16 for each stored
//! byte, one of stack nodes at most 128. Real sections seldom come near; those that would go beyond are
//! padded by a skippable frame of zstd's. A reader takes a payload that asks for more as damaged.
//!
//! An id occurs once in a payload; a reader passes over ids that it does not know.
//!
//! | id | in | holds |
//! |---|---|---|
//! | 1 | chunk | stack nodes |
//! | 2 | chunk | events |
//! | 3 | chunk | records of kinds 5, 6 and 7 |
//! | 4 | chunk | all other records |
//! | 5 | names | names |
//! | 6 | index | blocks |
//!
//! A *column* holds one varint for each of some rows: varint length in bytes, then the varints. Length 0
//! stands for a column of zeros, however many rows there are.
//!
//! **Stack nodes** (1): varint id of the first node, not 0; varint count, at most 2^18; columns: the node's
//! id minus its parent's modulo 2^32; step of the module from the node before (from 0 for the first); step
//! of the offset likewise; flags. Ids count on from chunk to chunk, the first being 1.
//!
//! **Events** (2): varint count, at most 2^18. Varint number of *groups*, at most 1024; for each `u8` call
//! (discriminant of [`Call`](calls::Call)), `u8` ABI (of [`Abi`](calls::Abi)), `u8` flags (bit 0: the calls
//! are [`Unfinished`](record::Outcome::Unfinished)), `u8` number of arguments, `u8` number of columns
//! (arguments + 3). Varint number of *lanes*, at most the number of events; for each varint group, varint
//! thread, varint space. Then five columns with a row for each event:
//!
//! 1. its lane;
//! 2. step of the exit stamp from that of the event before;
//! 3. step from its entry stamp to its exit stamp;
//! 4. step from the exit time of the event before to its entry time;
//! 5. step from its entry time to its exit time.
//!
//! (Before the first event, stamp and time are 0.) Then the columns of each group, in turn, with a row for
//! each event of the group: its arguments, its result, its stack, its file, each as the step from the event
//! before *of the same lane* (from 0 for a lane's first). The result of an unfinished call is 0. A reader
//! passes over events of groups that it does not understand, and over columns beyond those named here.
//!
//! **Records** (3, 4), until the section ends: varint step of its place, `u8` kind, varint length,
//! payload. The *place* is the record's number among all records of the chunk, from 0; what is written is
//! the place minus that of the record before in the same section, minus 1 (the first: the place itself).
//! The payload is the stamp, the time, and the fields as values, in this order:
//!
//! | kind | record | fields |
//! |---|---|---|
//! | 1 | [`SpaceStart`](record::Body::SpaceStart) | space, pid, origin, start_brk |
//! | 2 | [`SpaceEnd`](record::Body::SpaceEnd) | space, how |
//! | 3 | [`ThreadStart`](record::Body::ThreadStart) | thread, tid, pid, space, name |
//! | 4 | [`ThreadEnd`](record::Body::ThreadEnd) | thread, status, name |
//! | 5 | [`File`](record::Body::File) | id, then [`FileInfo`](record::FileInfo) |
//! | 6 | [`Module`](record::Body::Module) | id, then [`ModuleInfo`](record::ModuleInfo) |
//! | 7 | [`ModuleBase`](record::Body::ModuleBase) | space, module, bias |
//! | 8 | [`Checkpoint`](record::Body::Checkpoint) | [`Checkpoint`](record::Checkpoint) |
//! | 9 | [`Look`](record::Body::Look) | [`Look`](record::Look) |
//! | 10 | [`Rss`](record::Body::Rss) | space, then [`RssSample`](record::RssSample) |
//! | 11 | [`Residency`](record::Body::Residency) | [`Residency`](record::Residency) |
//! | 12 | [`Lost`](record::Body::Lost) | events, why |
//! | 13 | [`Note`](record::Body::Note) | text |
//! | 14 | [`Summary`](record::Body::Summary) | [`Summary`](record::Summary) |
//! | 15 | [`Untraced`](record::Body::Untraced) | [`Untraced`](record::Untraced) |
//! | 16 | [`Footprint`](record::Body::Footprint) | [`Footprint`](record::Footprint) |
//!
//! **Names** (5), until the section ends: varint length, a [`Name`](record::Name) as a value. One whose
//! source is [`Jit`](record::NameSource::Jit) names an absolute address, in one space: stacks are shared by
//! all spaces, so it is good for the stacks of that space's events only.
//!
//! **Index** (6): varint count of blocks, then columns with a row for each block before the index block,
//! including void ones and earlier indexes: bytes between the end of the block before (12 for the first) and
//! its start; kind; flags; step of the sequence from that of the block before plus 1; payload length; steps
//! of first time, last time and low water from those of the block before. (Before the first block all of
//! these are 0.) An index counts if the log ends with an end block that leads to it and the blocks do not
//! overlap; otherwise a reader walks over the block headers.
//!
//! ## Values
//!
//! The header, records and names are encoded as bincode 2's standard configuration does:
//!
//! - `u8` and `bool` (0 or 1): one byte.
//! - Larger unsigned numbers, including the discriminants of enums (`u32`) and all lengths (`u64`): below
//!   251 one byte; else `fb` and a `u16`, `fc` and a `u32`, or `fd` and a `u64`, the shortest that fits.
//! - `i32`: zigzag, then as an unsigned number.
//! - Strings: length in bytes, UTF-8. Vectors: length, then the items.
//! - Options: one byte, 0 or 1, then the value if 1.
//! - Structs, tuples and newtypes: their fields in the order of their declaration, nothing between.
//! - Enums: the number of the variant in the order of declaration, from 0, then its fields.
//!
//! ## Versions
//!
//! - A reader refuses a larger major version, and reads every minor version of its own major one.
//! - A minor version may add kinds of blocks, ids of sections, kinds of records, calls, ABIs, group flags,
//!   columns of groups after the others, variants at the end of an enum, and fields **at the end of a
//!   payload**: of a record, a name or the header. Older readers pass over all of these, and count what
//!   they left out where it may be missed. (They keep the number of an unknown mechanism: without its
//!   header a log is nothing.)
//! - A field is at the end of a payload only if it is the last of the last struct. A struct that stands in a
//!   vector, or before other fields, gets no fields; a new kind of record carries them.
//! - A reader that knows a field must take a payload that ends before it, as that of an older writer.
//! - Numbers are never used again. The exact bytes of a small log are a test (`tests/log/format.rs`).
#![forbid(unsafe_code)]

mod block;
pub mod calls;
mod chunk;
mod columns;
mod events;
mod index;
mod meta;
pub mod reader;
pub mod record;
mod section;
pub mod types;
mod varint;
pub mod writer;
