//! Reads a log: chunk by chunk, from any chunk on, and whatever is left of a damaged one.
//!
//! It does not judge what the records say. Nothing in a log can make it panic, or use memory out of
//! proportion to the log's size.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use serde::Serialize;

use crate::block::{
    self, FIRST_BLOCK, HAS_CHECKPOINT, HAS_SUMMARY, HEADER_LEN, MAGIC, MAJOR, Placed, Scan, kind,
};
use crate::chunk;
use crate::index;
use crate::meta;
use crate::record::{Header, Name};
use crate::section::{self, Section, SectionReader};
use crate::types::{Nanos, StackId, Stamp};
use crate::varint::{Cursor, Malformed};

pub use crate::chunk::Chunk;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There are no bytes.
    #[error("the file is empty")]
    Empty,
    /// It does not begin as a log does.
    #[error("not a maptrail log")]
    NotALog,
    /// A newer program wrote it, in a way that this one cannot read.
    #[error(
        "the log has format version {found}, this program reads up to version {supported}: \
         use a newer maptrail"
    )]
    NewerVersion {
        /// The log's major version.
        found: u16,
        /// The newest that this program reads.
        supported: u16,
    },
    /// It begins as a log does, but what it is about cannot be read.
    #[error("the log's header is damaged or incomplete")]
    HeaderDamaged,
    /// It cannot be read at all.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is wrong with a log, as far as is known: damage inside a block is found when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The recorder closed the window in order: the chunk with the summary is there.
    pub has_end: bool,
    /// There is a good index.
    pub has_index: bool,
    /// Blocks that are there and cannot be read, or are missing between others.
    pub damaged_blocks: u64,
    /// Bytes between the blocks that belong to none.
    pub skipped_bytes: u64,
    /// Bytes of an incomplete block at the end.
    pub cut_bytes: u64,
    /// Blocks of kinds that this version does not know.
    pub unknown_blocks: u64,
    /// Records of kinds that this version does not know, in the chunks read since the start or the
    /// last [`LogReader::rewind`].
    pub unknown_records: u64,
    /// Events of calls that this version does not know, likewise.
    pub unknown_events: u64,
    /// Names that this version does not understand, once [`LogReader::names`] has read them.
    pub unknown_names: u64,
}

impl Health {
    /// Whether everything that the recorder wrote is there, up to the end of its window.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.has_end && self.damaged_blocks == 0 && self.skipped_bytes == 0 && self.cut_bytes == 0
    }
}

/// Where the bytes of a log went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LogBytes {
    /// Call events.
    pub events: u64,
    /// Stack nodes.
    pub stacks: u64,
    /// Modules, files and where they were mapped.
    pub modules: u64,
    /// Names.
    pub symbols: u64,
    /// The rest: other records, framing, index, damage.
    pub other: u64,
    /// All of it: the length of the log.
    pub total: u64,
}

/// What is known of a chunk without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Time of its first event or record.
    pub first_ns: Nanos,
    /// Time of its last event or record.
    pub last_ns: Nanos,
    /// See [`Chunk::low_water`].
    pub low_water: Stamp,
    /// It holds a checkpoint.
    pub has_checkpoint: bool,
    /// It holds the summary.
    pub has_summary: bool,
    /// Its length in the log, bytes.
    pub bytes: u64,
}

/// Reads a log.
pub struct LogReader<R> {
    input: R,
    len: u64,
    header: Header,
    has_index: bool,
    scan: Scan,
    /// Which of `scan.blocks` are chunks.
    chunks: Vec<usize>,
    /// Index in `chunks` of the next one to read.
    next: usize,
    /// Which of `scan.blocks` turned out to be damaged.
    damaged: Vec<bool>,
    last: chunk::Decoded,
    unknown_records: u64,
    unknown_events: u64,
    unknown_names: u64,
    payload: Vec<u8>,
    sections: SectionReader,
}

impl<R> fmt::Debug for LogReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogReader")
            .field("bytes", &self.len)
            .field("chunks", &self.chunks.len())
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl<R: Read + Seek> LogReader<R> {
    /// Opens a log, reads its header, and finds its blocks: by the index where there is a good one,
    /// else by walking over the block headers.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(mut input: R) -> Result<LogReader<R>, OpenError> {
        let len = input.seek(SeekFrom::End(0))?;
        check_start(&mut input, len)?;
        let mut payload = Vec::new();
        let header = read_log_header(&mut input, len, &mut payload)?;
        let mut sections = SectionReader::new()?;
        let indexed = index::read(&mut input, len, &mut sections)?;
        let has_index = indexed.is_some();
        let scan = match indexed {
            Some(scan) => scan,
            None => block::scan(&mut input, len)?,
        };
        let chunks = (scan.blocks.iter().enumerate())
            .filter(|(_, block)| block.header.kind == kind::CHUNK)
            .map(|(i, _)| i)
            .collect();
        Ok(LogReader {
            damaged: vec![false; scan.blocks.len()],
            input,
            len,
            header,
            has_index,
            scan,
            chunks,
            next: 0,
            last: chunk::Decoded::default(),
            unknown_records: 0,
            unknown_events: 0,
            unknown_names: 0,
            payload,
            sections,
        })
    }

    /// What the log is about.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next chunk into `chunk`, whose buffers are used again; `false` at the end. A
    /// damaged chunk is passed over, and counted in [`LogReader::health`].
    ///
    /// # Errors
    /// Those of the input. Damage is not an error.
    pub fn next_chunk(&mut self, chunk: &mut Chunk) -> io::Result<bool> {
        while let Some(&at) = self.chunks.get(self.next) {
            self.next += 1;
            let Some(&block) = self.scan.blocks.get(at) else {
                continue;
            };
            if block::read_payload(&mut self.input, &block, &mut self.payload)?
                && let Ok(decoded) =
                    chunk::decode(&block.header, &self.payload, &mut self.sections, chunk)
            {
                self.last = decoded;
                self.unknown_records += decoded.unknown_records;
                self.unknown_events += decoded.unknown_events;
                return Ok(true);
            }
            self.note_damage(at);
        }
        chunk.clear();
        self.last = chunk::Decoded::default();
        Ok(false)
    }

    /// The id of the first stack node of the chunk that was read last; 0 if it has no nodes. Ids run
    /// on from chunk to chunk, so a larger one than expected tells of a chunk that is missing.
    pub fn first_node(&self) -> StackId {
        self.last.first_node
    }

    /// Goes back to the first chunk.
    pub fn rewind(&mut self) {
        self.seek_chunk(0);
        self.unknown_records = 0;
        self.unknown_events = 0;
    }

    /// All chunks, without reading them.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = ChunkInfo> + '_ {
        self.chunks.iter().map(|&i| {
            let h = self
                .scan
                .blocks
                .get(i)
                .map(|b| b.header)
                .unwrap_or_default();
            ChunkInfo {
                first_ns: Nanos(h.first_ns),
                last_ns: Nanos(h.last_ns),
                low_water: Stamp(h.low_water),
                has_checkpoint: h.flags & HAS_CHECKPOINT != 0,
                has_summary: h.flags & HAS_SUMMARY != 0,
                bytes: h.total_len(),
            }
        })
    }

    /// Makes this chunk (by its place in [`LogReader::chunks`]) the next one to read.
    pub fn seek_chunk(&mut self, chunk: usize) {
        self.next = chunk;
        self.last = chunk::Decoded::default();
    }

    /// All names in the log. Independent of how far the chunks have been read.
    ///
    /// # Errors
    /// Those of the input. Damage is not an error.
    pub fn names(&mut self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        self.unknown_names = 0;
        for at in 0..self.scan.blocks.len() {
            let Some(&block) = self.scan.blocks.get(at) else {
                continue;
            };
            if block.header.kind != kind::NAMES {
                continue;
            }
            let before = names.len();
            let mut unknown = 0;
            let each = |section: Section<'_>| {
                if section.id == section::id::NAMES {
                    unknown += decode_names(section.raw, &mut names)?;
                }
                Ok(())
            };
            if block::read_payload(&mut self.input, &block, &mut self.payload)?
                && self.sections.read(&self.payload, each).is_ok()
            {
                self.unknown_names += unknown;
            } else {
                names.truncate(before);
                self.note_damage(at);
            }
        }
        Ok(names)
    }

    /// Reads the blocks that are neither chunks nor names (an index that a newer one stands for,
    /// say) to find damage in them. What a void block covers is incomplete as it is.
    ///
    /// # Errors
    /// Those of the input. Damage is not an error.
    pub fn check_other_blocks(&mut self) -> io::Result<()> {
        for at in 0..self.scan.blocks.len() {
            let Some(&block) = self.scan.blocks.get(at) else {
                continue;
            };
            if !matches!(block.header.kind, kind::CHUNK | kind::NAMES | kind::VOID)
                && !block::read_payload(&mut self.input, &block, &mut self.payload)?
            {
                self.note_damage(at);
            }
        }
        Ok(())
    }

    /// What is wrong with the log, as far as is known by now.
    #[must_use]
    pub fn health(&self) -> Health {
        let of_kind = |kind| {
            self.scan
                .blocks
                .iter()
                .filter(move |b| b.header.kind == kind)
        };
        let void: u64 = of_kind(kind::VOID).map(|b| b.header.total_len()).sum();
        let damaged = self.damaged.iter().filter(|d| **d).count() as u64;
        Health {
            has_end: of_kind(kind::CHUNK).any(|b| b.header.flags & HAS_SUMMARY != 0),
            has_index: self.has_index,
            damaged_blocks: damaged + self.scan.lost_blocks,
            skipped_bytes: self.scan.skipped_bytes,
            cut_bytes: self.scan.cut_bytes + void,
            unknown_blocks: (self.scan.blocks.iter())
                .filter(|b| !(kind::HEADER..=kind::VOID).contains(&b.header.kind))
                .count() as u64,
            unknown_records: self.unknown_records,
            unknown_events: self.unknown_events,
            unknown_names: self.unknown_names,
        }
    }

    /// Where the log's bytes went, by the headers of blocks and sections.
    ///
    /// # Errors
    /// Those of the input.
    pub fn log_bytes(&mut self) -> io::Result<LogBytes> {
        let mut bytes = LogBytes {
            total: self.len,
            ..LogBytes::default()
        };
        for block in &self.scan.blocks {
            if !matches!(block.header.kind, kind::CHUNK | kind::NAMES) {
                continue;
            }
            let payload = block.offset.saturating_add(HEADER_LEN as u64);
            let longest = 1 + section::MAX_SECTIONS * section::ENTRY_LEN;
            let table_len = u64::from(block.header.payload_len).min(longest as u64);
            self.input.seek(SeekFrom::Start(payload))?;
            self.payload.clear();
            (&mut self.input)
                .take(table_len)
                .read_to_end(&mut self.payload)?;
            // A damaged table counts for nothing; its bytes are among the others.
            let table = section::read_table(&mut Cursor(&self.payload)).unwrap_or_default();
            let sum: u64 = table.iter().map(|s| s.stored as u64).sum();
            if sum > u64::from(block.header.payload_len) {
                continue;
            }
            for info in table {
                let stored = info.stored as u64;
                match info.id {
                    section::id::EVENTS => bytes.events += stored,
                    section::id::STACKS => bytes.stacks += stored,
                    section::id::MODULES => bytes.modules += stored,
                    section::id::NAMES => bytes.symbols += stored,
                    _ => {}
                }
            }
        }
        let told = bytes.events + bytes.stacks + bytes.modules + bytes.symbols;
        bytes.other = bytes.total.saturating_sub(told);
        Ok(bytes)
    }

    /// Times of the first and of the last event or record, by the block headers. `None` if there is
    /// no chunk.
    #[must_use]
    pub fn span(&self) -> Option<(Nanos, Nanos)> {
        let first = self.chunks().map(|c| c.first_ns).min()?;
        let last = self.chunks().map(|c| c.last_ns).max()?;
        Some((first, last))
    }

    /// Gives back the input.
    pub fn into_inner(self) -> R {
        self.input
    }

    pub(crate) fn into_scan(self) -> Scan {
        self.scan
    }

    fn note_damage(&mut self, block: usize) {
        if let Some(damaged) = self.damaged.get_mut(block) {
            *damaged = true;
        }
    }
}

/// Magic and version.
fn check_start<R: Read + Seek>(input: &mut R, len: u64) -> Result<(), OpenError> {
    if len == 0 {
        return Err(OpenError::Empty);
    }
    input.seek(SeekFrom::Start(0))?;
    let mut start = Vec::new();
    input.take(FIRST_BLOCK).read_to_end(&mut start)?;
    let magic = MAGIC.len().min(start.len());
    if start[..magic] != MAGIC[..magic] {
        return Err(OpenError::NotALog);
    }
    let Some(&[low, high]) = start.get(8..10) else {
        return Err(OpenError::HeaderDamaged);
    };
    match u16::from_le_bytes([low, high]) {
        // There has been no version 0.
        0 => Err(OpenError::HeaderDamaged),
        found if found > MAJOR => Err(OpenError::NewerVersion {
            found,
            supported: MAJOR,
        }),
        _ => Ok(()),
    }
}

fn read_log_header<R: Read + Seek>(
    input: &mut R,
    len: u64,
    payload: &mut Vec<u8>,
) -> Result<Header, OpenError> {
    let block = block::read_header(input, FIRST_BLOCK)?
        .map(|header| Placed {
            offset: FIRST_BLOCK,
            header,
        })
        .filter(|block| block.header.kind == kind::HEADER && block.end() <= len)
        .ok_or(OpenError::HeaderDamaged)?;
    if !block::read_payload(input, &block, payload)? {
        return Err(OpenError::HeaderDamaged);
    }
    meta::take_header(payload).map_err(|_| OpenError::HeaderDamaged)
}

/// Appends a section's names; returns how many are unknown to this version.
fn decode_names(raw: &[u8], names: &mut Vec<Name>) -> Result<u64, Malformed> {
    let mut cursor = Cursor(raw);
    let mut unknown = 0;
    while !cursor.is_empty() {
        match meta::take_name(cursor.prefixed()?.0) {
            Some(name) => names.push(name),
            None => unknown += 1,
        }
    }
    Ok(unknown)
}
