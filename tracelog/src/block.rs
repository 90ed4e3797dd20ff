//! Blocks: the frame that everything in a log stands in, and how to find the next one after damage.
//!
//! Nothing here looks into a payload; the crate's documentation has the layout byte by byte.

use std::io::{self, Read, Seek, SeekFrom};

use crate::varint::Cursor;

/// The first bytes of every log.
pub(crate) const MAGIC: &[u8; 8] = b"MAPTRAIL";
/// A reader refuses logs of a larger major version.
pub(crate) const MAJOR: u16 = 1;
/// A reader reads logs of any minor version.
pub(crate) const MINOR: u16 = 0;
/// Where the first block, the header, begins: after magic and versions.
pub(crate) const FIRST_BLOCK: u64 = 12;

/// Begins every block. Not ASCII, and not valid UTF-8.
const MARK: [u8; 4] = [0xf5, b'M', b'T', 0xfa];
/// Length of a block's own header, bytes.
pub(crate) const HEADER_LEN: usize = 48;

/// What blocks are for. A reader passes over the kinds that it does not know.
pub(crate) mod kind {
    pub(crate) const HEADER: u8 = 1;
    pub(crate) const CHUNK: u8 = 2;
    pub(crate) const NAMES: u8 = 3;
    pub(crate) const INDEX: u8 = 4;
    pub(crate) const END: u8 = 5;
    pub(crate) const VOID: u8 = 6;
}

/// Chunk flag: it holds a checkpoint.
pub(crate) const HAS_CHECKPOINT: u8 = 1;
/// Chunk flag: it holds the summary.
pub(crate) const HAS_SUMMARY: u8 = 2;

/// A block's header, mark and checksum of itself apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Counts the blocks of a log from 0, so that a gap tells how many are missing.
    pub(crate) sequence: u32,
    pub(crate) payload_len: u32,
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    pub(crate) low_water: u64,
    pub(crate) payload_crc: u32,
}

impl BlockHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MARK);
        out[4] = self.kind;
        out[5] = self.flags;
        // Bytes 6 and 7 are reserved: written as 0, not looked at.
        out[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_len.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_ns.to_le_bytes());
        out[24..32].copy_from_slice(&self.last_ns.to_le_bytes());
        out[32..40].copy_from_slice(&self.low_water.to_le_bytes());
        out[40..44].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..44]);
        out[44..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` unless mark and checksum are right.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Option<BlockHeader> {
        if bytes[..4] != MARK {
            return None;
        }
        let mut at = Cursor(&bytes[4..]);
        let header = BlockHeader {
            kind: at.u8().ok()?,
            flags: at.u8().ok()?,
            sequence: at.take(2).and_then(|_| at.u32_le()).ok()?,
            payload_len: at.u32_le().ok()?,
            first_ns: at.u64_le().ok()?,
            last_ns: at.u64_le().ok()?,
            low_water: at.u64_le().ok()?,
            payload_crc: at.u32_le().ok()?,
        };
        (at.u32_le().ok()? == crc32c::crc32c(&bytes[..44])).then_some(header)
    }

    /// Length of header and payload, bytes.
    pub(crate) fn total_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.payload_len)
    }
}

/// A block and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Offset of its header in the log.
    pub(crate) offset: u64,
    pub(crate) header: BlockHeader,
}

impl Placed {
    /// Offset of the byte after it.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.header.total_len())
    }
}

/// Reads the block header at `offset`; `None` if there is none.
pub(crate) fn read_header<R: Read + Seek>(
    input: &mut R,
    offset: u64,
) -> io::Result<Option<BlockHeader>> {
    input.seek(SeekFrom::Start(offset))?;
    let mut bytes = [0; HEADER_LEN];
    match input.read_exact(&mut bytes) {
        Ok(()) => Ok(BlockHeader::decode(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads a block's payload into `payload`. `false` if the block there is another one, or damaged.
pub(crate) fn read_payload<R: Read + Seek>(
    input: &mut R,
    block: &Placed,
    payload: &mut Vec<u8>,
) -> io::Result<bool> {
    payload.clear();
    let Some(header) = read_header(input, block.offset)? else {
        return Ok(false);
    };
    if header.kind != block.header.kind || header.payload_len != block.header.payload_len {
        return Ok(false);
    }
    // Through `take`, so that a wrong length cannot ask for more memory than there are bytes.
    let wanted = u64::from(header.payload_len);
    let got = input.take(wanted).read_to_end(payload)?;
    Ok(got as u64 == wanted && crc32c::crc32c(payload) == header.payload_crc)
}

/// What a walk over a log's block headers found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The blocks that are whole, as far as their headers tell.
    pub(crate) blocks: Vec<Placed>,
    /// Blocks missing from the gaps between them.
    pub(crate) lost_blocks: u64,
    /// Bytes in those gaps.
    pub(crate) skipped_bytes: u64,
    /// Bytes after the last whole block.
    pub(crate) cut_bytes: u64,
}

/// How many blocks a gap of `gap` bytes has swallowed, if their numbers say that `missing` are. A
/// number that the gap has no room for says nothing.
pub(crate) fn plausible_loss(missing: u64, gap: u64) -> u64 {
    if missing <= gap.div_ceil(HEADER_LEN as u64) {
        missing.max(1)
    } else {
        1
    }
}

/// Walks over the block headers of a log of `len` bytes, and finds the next one after damage.
pub(crate) fn scan<R: Read + Seek>(input: &mut R, len: u64) -> io::Result<Scan> {
    let mut out = Scan::default();
    let mut end = FIRST_BLOCK.min(len);
    while end < len {
        let here = read_header(input, end)?.map(|header| Placed {
            offset: end,
            header,
        });
        let found = match here.filter(|block| block.end() <= len) {
            Some(block) => block,
            None => match resync(input, end + 1, len)? {
                Some(block) => block,
                None => break,
            },
        };
        if found.offset > end {
            let gap = found.offset - end;
            out.skipped_bytes += gap;
            let before = out
                .blocks
                .last()
                .map_or(0, |b| b.header.sequence.wrapping_add(1));
            let missing = u64::from(found.header.sequence.wrapping_sub(before));
            out.lost_blocks += plausible_loss(missing, gap);
        }
        end = found.end();
        out.blocks.push(found);
    }
    out.cut_bytes = len - end;
    Ok(out)
}

/// The first whole block whose header begins at `from` or later.
fn resync<R: Read + Seek>(input: &mut R, from: u64, len: u64) -> io::Result<Option<Placed>> {
    const WINDOW: u64 = 1 << 16;
    let mut buffer = Vec::with_capacity(WINDOW as usize);
    let mut at = from;
    while at + HEADER_LEN as u64 <= len {
        buffer.clear();
        input.seek(SeekFrom::Start(at))?;
        input.take(WINDOW).read_to_end(&mut buffer)?;
        for (i, bytes) in buffer.windows(HEADER_LEN).enumerate() {
            if bytes[0] != MARK[0] {
                continue;
            }
            if let Some(bytes) = bytes.first_chunk()
                && let Some(header) = BlockHeader::decode(bytes)
            {
                let block = Placed {
                    offset: at + i as u64,
                    header,
                };
                if block.end() <= len {
                    return Ok(Some(block));
                }
            }
        }
        if buffer.len() < HEADER_LEN {
            break;
        }
        // The windows overlap by one byte less than a header.
        at += (buffer.len() - (HEADER_LEN - 1)) as u64;
    }
    Ok(None)
}
