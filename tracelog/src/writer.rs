//! Writes a log, chunk by chunk, and adds names to one that is finished.
//!
//! It only needs [`Write`], so a log can go down a pipe. When a chunk is written (once a second,
//! say) is the caller's decision.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::block::{BlockHeader, FIRST_BLOCK, HEADER_LEN, MAGIC, MAJOR, MINOR, Placed, kind};
use crate::chunk::{ChunkEncoder, Part};
use crate::index;
use crate::meta;
use crate::reader::{LogReader, OpenError};
use crate::record::{Header, Name};
use crate::section::{self, BlockBuilder};
use crate::varint;

pub use crate::chunk::Chunk;

/// Names are written in blocks of about this size before compression, bytes.
const NAMES_PER_BLOCK: usize = 4 << 20;

/// Writes a log.
///
/// Each method that writes hands the output one `write_all` per block, so that a recorder that is
/// killed leaves at most one incomplete block, at the end. After any error the log is good up to the
/// block before ([`bytes_written`](LogWriter::bytes_written)), and the writer refuses to go on until
/// the output [is cut back](LogWriter::was_cut_back) to there.
pub struct LogWriter<W> {
    out: W,
    /// Bytes of the log so far.
    written: u64,
    blocks: Vec<Placed>,
    sequence: u32,
    /// Id of the next stack node. `None` when an existing log was opened: it takes no more chunks.
    next_node: Option<u32>,
    failed: bool,
    builder: BlockBuilder,
    chunks: ChunkEncoder,
    raw: Vec<u8>,
}

impl<W> fmt::Debug for LogWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter")
            .field("bytes", &self.written)
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

impl<W: Write> LogWriter<W> {
    /// Begins a log: writes magic, version and header.
    ///
    /// # Errors
    /// Those of the output.
    pub fn create(out: W, header: &Header) -> io::Result<LogWriter<W>> {
        let mut writer = LogWriter::new(out, FIRST_BLOCK, Vec::new(), Some(1))?;
        let mut payload = Vec::new();
        meta::put_header(&mut payload, header)
            .map_err(|_| io::Error::other("the header cannot be encoded"))?;
        let mut head = BlockHeader {
            kind: kind::HEADER,
            ..BlockHeader::default()
        };
        let block = writer.builder.plain(&mut head, &payload)?;
        let mut start = Vec::with_capacity(FIRST_BLOCK as usize + block.len());
        start.extend_from_slice(MAGIC);
        start.extend_from_slice(&MAJOR.to_le_bytes());
        start.extend_from_slice(&MINOR.to_le_bytes());
        start.extend_from_slice(block);
        writer.out.write_all(&start)?;
        writer.note(head);
        Ok(writer)
    }

    fn new(
        out: W,
        written: u64,
        blocks: Vec<Placed>,
        next_node: Option<u32>,
    ) -> io::Result<LogWriter<W>> {
        Ok(LogWriter {
            out,
            written,
            sequence: blocks
                .last()
                .map_or(0, |b| b.header.sequence.wrapping_add(1)),
            blocks,
            next_node,
            failed: false,
            builder: BlockBuilder::new()?,
            chunks: ChunkEncoder::default(),
            raw: Vec::new(),
        })
    }

    /// Writes a chunk. One that is too large for a block (2^18 events or nodes, or 64 MiB of
    /// records) becomes several.
    ///
    /// # Errors
    /// Those of the output; `InvalidInput` for a single record of more than 64 MiB, for more than
    /// 2^32 stack nodes, and for a log that was opened with [`LogWriter::append`].
    pub fn write_chunk(&mut self, chunk: &Chunk) -> io::Result<()> {
        self.check()?;
        let Some(first_node) = self.next_node else {
            return Err(invalid("a log that was finished takes no more chunks"));
        };
        self.failed = true;
        self.write_part(Part::whole(chunk), first_node)?;
        self.failed = false;
        Ok(())
    }

    /// Writes a part as one block or more. Takes the id of its first node, and returns the next one.
    fn write_part(&mut self, mut part: Part<'_>, mut first_node: u32) -> io::Result<u32> {
        loop {
            let fits = self.chunks.prepare(&part)?;
            let Some((first, rest)) = part.split(!fits) else {
                return self.write_prepared(&part, first_node);
            };
            first_node = self.write_part(first, first_node)?;
            part = rest;
        }
    }

    fn write_prepared(&mut self, part: &Part<'_>, first_node: u32) -> io::Result<u32> {
        let next_node = u32::try_from(part.nodes.len())
            .ok()
            .and_then(|n| first_node.checked_add(n))
            .ok_or_else(|| invalid("too many stack nodes for one log"))?;
        let (header, block) =
            (self.chunks).encode(part, first_node, self.sequence, &mut self.builder)?;
        self.out.write_all(block)?;
        self.note(header);
        self.next_node = Some(next_node);
        Ok(next_node)
    }

    /// Writes names of places in modules.
    ///
    /// # Errors
    /// Those of the output; `InvalidInput` for a single name of more than 60 MiB.
    pub fn write_names(&mut self, names: &[Name]) -> io::Result<()> {
        let mut one = Vec::new();
        let mut raw = Vec::new();
        for (i, name) in names.iter().enumerate() {
            one.clear();
            meta::put_name(&mut one, name)
                .map_err(|_| io::Error::other("a name cannot be encoded"))?;
            varint::put(&mut raw, one.len() as u64);
            raw.extend_from_slice(&one);
            if raw.len() >= NAMES_PER_BLOCK || i + 1 == names.len() {
                self.write_section(kind::NAMES, section::id::NAMES, &raw)?;
                raw.clear();
            }
        }
        Ok(())
    }

    /// Writes the index and the end mark, and flushes. Without them a log is read just as well, only
    /// opened more slowly.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(&mut self) -> io::Result<()> {
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        index::encode(&self.blocks, &mut raw);
        if raw.len() <= section::MAX_RAW {
            let offset = self.written;
            self.write_section(kind::INDEX, section::id::INDEX, &raw)?;
            self.write_plain(kind::END, &offset.to_le_bytes())?;
        }
        self.raw = raw;
        self.out.flush()
    }

    /// Bytes of the log so far; for one that was opened, including what was there.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.written
    }

    /// After an error the output was cut back to [`bytes_written`](LogWriter::bytes_written) bytes, and
    /// stands there: the log may go on. Of the chunk that failed, some blocks may be in it.
    pub fn was_cut_back(&mut self) {
        self.failed = false;
    }

    /// The output.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// The output, to flush it for example. Whatever else is written to it damages the log.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Gives back the output. Does not [`finish`](LogWriter::finish) the log.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn write_section(&mut self, kind: u8, id: u8, raw: &[u8]) -> io::Result<()> {
        self.check()?;
        let mut header = self.next_header(kind);
        self.builder.start(1);
        self.builder.add(id, raw, 0)?;
        let block = self.builder.finish(&mut header)?;
        self.failed = true;
        self.out.write_all(block)?;
        self.failed = false;
        self.note(header);
        Ok(())
    }

    fn write_plain(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        self.check()?;
        let mut header = self.next_header(kind);
        let block = self.builder.plain(&mut header, payload)?;
        self.failed = true;
        self.out.write_all(block)?;
        self.failed = false;
        self.note(header);
        Ok(())
    }

    /// Blocks that are no chunks carry the times of the block before, so that they ascend.
    fn next_header(&self, kind: u8) -> BlockHeader {
        let before = self.blocks.last().map(|b| b.header).unwrap_or_default();
        BlockHeader {
            kind,
            sequence: self.sequence,
            first_ns: before.last_ns,
            last_ns: before.last_ns,
            low_water: before.low_water,
            ..BlockHeader::default()
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier write to the log failed"));
        }
        Ok(())
    }

    /// Enters the block just written.
    fn note(&mut self, header: BlockHeader) {
        let block = Placed {
            offset: self.written,
            header,
        };
        self.written = block.end();
        self.sequence = self.sequence.wrapping_add(1);
        self.blocks.push(block);
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl<F: Read + Write + Seek> LogWriter<F> {
    /// Opens an existing log to add names to it, and to [`finish`](LogWriter::finish) it again. What
    /// is there is not changed, but for the front of an incomplete block at its end, over which a
    /// mark is written that says so.
    ///
    /// # Errors
    /// As [`LogReader::open`].
    pub fn append(mut file: F) -> Result<LogWriter<F>, OpenError> {
        let scan = LogReader::open(&mut file)?.into_scan();
        let len = file.seek(SeekFrom::End(0))?;
        let good = len - scan.cut_bytes;
        let mut writer = LogWriter::new(file, good, scan.blocks, None)?;
        match scan.cut_bytes.checked_sub(HEADER_LEN as u64) {
            // Too short for a mark: left alone, and skipped by readers.
            None => writer.written = len,
            Some(payload_len) => writer.cover(good, payload_len)?,
        }
        writer.out.seek(SeekFrom::Start(writer.written))?;
        Ok(writer)
    }

    /// Writes void marks over `payload_len + HEADER_LEN` bytes from `offset` on.
    fn cover(&mut self, offset: u64, payload_len: u64) -> io::Result<()> {
        let mut header = self.next_header(kind::VOID);
        header.payload_len = u32::try_from(payload_len)
            .map_err(|_| io::Error::other("the log's incomplete end is larger than 4 GiB"))?;
        self.out.seek(SeekFrom::Start(offset))?;
        self.out.write_all(&header.encode())?;
        self.note(header);
        Ok(())
    }
}
