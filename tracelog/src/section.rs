//! Sections: the parts of a block's payload, each compressed for itself.
//!
//! They make it possible to say how many bytes of a log are events, stacks, modules, names.

use std::io;

use crate::block::{BlockHeader, HEADER_LEN};
use crate::varint::{Cursor, Malformed};

/// What sections hold. A reader passes over those that it does not know.
pub(crate) mod id {
    pub(crate) const STACKS: u8 = 1;
    pub(crate) const EVENTS: u8 = 2;
    pub(crate) const MODULES: u8 = 3;
    pub(crate) const RECORDS: u8 = 4;
    pub(crate) const NAMES: u8 = 5;
    pub(crate) const INDEX: u8 = 6;
}

/// A section's length before compression, at most: what a reader must be ready to allocate.
pub(crate) const MAX_RAW: usize = 64 << 20;
/// What a small log can ask for is bounded, too: a section of up to [`SMALL_RAW`] bytes is at most so
/// many times as long as what is stored of it, and a larger one at most [`MAX_RATIO`] times. Real
/// sections seldom compress so well; those that do are padded.
const MAX_SMALL_RATIO: usize = 512;
/// See [`MAX_SMALL_RATIO`].
const MAX_RATIO: usize = 128;
/// See [`MAX_SMALL_RATIO`], bytes.
const SMALL_RAW: usize = 1 << 20;
/// Length of an entry of the section table, bytes.
pub(crate) const ENTRY_LEN: usize = 10;
/// Sections in a block at most.
pub(crate) const MAX_SECTIONS: usize = 16;

const STORED: u8 = 0;
const ZSTD: u8 = 1;
const LEVEL: i32 = 1;
/// Begins a zstd frame that decompresses to nothing: after it a `u32` length, and as many bytes.
const SKIPPABLE: u32 = 0x184d_2a50;

/// Builds a block: header, section table, sections, in one buffer that is kept from block to block.
pub(crate) struct BlockBuilder {
    block: Vec<u8>,
    entries: Vec<[u8; ENTRY_LEN]>,
    scratch: Vec<u8>,
    zstd: zstd::bulk::Compressor<'static>,
}

impl BlockBuilder {
    pub(crate) fn new() -> io::Result<BlockBuilder> {
        Ok(BlockBuilder {
            block: Vec::new(),
            entries: Vec::new(),
            scratch: Vec::new(),
            zstd: zstd::bulk::Compressor::new(LEVEL)?,
        })
    }

    /// Begins a block with `sections` sections.
    pub(crate) fn start(&mut self, sections: usize) {
        self.entries.clear();
        self.block.clear();
        self.block.resize(HEADER_LEN + 1 + sections * ENTRY_LEN, 0);
    }

    /// Adds a section, compressed where that makes it smaller, but stored in at least `least` bytes.
    pub(crate) fn add(&mut self, id: u8, raw: &[u8], least: usize) -> io::Result<()> {
        if raw.len() > MAX_RAW {
            return Err(too_large());
        }
        let least = least.max(least_stored(raw.len()));
        self.scratch.clear();
        self.scratch
            .reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.zstd.compress_to_buffer(raw, &mut self.scratch)?;
        pad(&mut self.scratch, least);
        let (encoding, bytes) = if (least..=self.scratch.len()).contains(&raw.len()) {
            (STORED, raw)
        } else {
            (ZSTD, &self.scratch[..])
        };
        let mut entry = [id, encoding, 0, 0, 0, 0, 0, 0, 0, 0];
        entry[2..6].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        entry[6..].copy_from_slice(&(raw.len() as u32).to_le_bytes());
        self.entries.push(entry);
        self.block.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends a block of sections: fills in the table and the header. `header` needs no length and
    /// no checksum; they are set here.
    pub(crate) fn finish(&mut self, header: &mut BlockHeader) -> io::Result<&[u8]> {
        let table = HEADER_LEN + 1..HEADER_LEN + 1 + self.entries.len() * ENTRY_LEN;
        self.block[HEADER_LEN] = self.entries.len() as u8;
        self.block[table].copy_from_slice(self.entries.as_flattened());
        self.seal(header)
    }

    /// A whole block around a payload without sections.
    pub(crate) fn plain(&mut self, header: &mut BlockHeader, payload: &[u8]) -> io::Result<&[u8]> {
        self.block.clear();
        self.block.resize(HEADER_LEN, 0);
        self.block.extend_from_slice(payload);
        self.seal(header)
    }

    fn seal(&mut self, header: &mut BlockHeader) -> io::Result<&[u8]> {
        let payload = &self.block[HEADER_LEN..];
        header.payload_len = u32::try_from(payload.len()).map_err(|_| too_large())?;
        header.payload_crc = crc32c::crc32c(payload);
        self.block[..HEADER_LEN].copy_from_slice(&header.encode());
        Ok(&self.block)
    }
}

/// The fewest bytes that may stand for a section of `raw` bytes.
fn least_stored(raw: usize) -> usize {
    raw.div_ceil(if raw > SMALL_RAW {
        MAX_RATIO
    } else {
        MAX_SMALL_RATIO
    })
}

/// Makes some zstd frames at least `least` bytes long, by one more that means nothing.
fn pad(frames: &mut Vec<u8>, least: usize) {
    if let Some(missing @ 1..) = least.checked_sub(frames.len()) {
        let zeros = missing.saturating_sub(8);
        frames.extend(SKIPPABLE.to_le_bytes());
        frames.extend((zeros as u32).to_le_bytes());
        frames.resize(frames.len() + zeros, 0);
    }
}

fn too_large() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "a record is too large for the log (64 MiB)",
    )
}

/// One entry of a section table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SectionInfo {
    pub(crate) id: u8,
    encoding: u8,
    /// Length in the log, bytes.
    pub(crate) stored: usize,
    /// Length before compression, bytes.
    pub(crate) raw: usize,
}

/// Reads the section table at the front of a payload.
pub(crate) fn read_table(cursor: &mut Cursor<'_>) -> Result<Vec<SectionInfo>, Malformed> {
    let count = usize::from(cursor.u8()?);
    if count > MAX_SECTIONS {
        return Err(Malformed);
    }
    let mut table = Vec::with_capacity(count);
    for _ in 0..count {
        table.push(SectionInfo {
            id: cursor.u8()?,
            encoding: cursor.u8()?,
            stored: cursor.u32_le()? as usize,
            raw: cursor.u32_le()? as usize,
        });
    }
    Ok(table)
}

/// A section of a payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section<'a> {
    pub(crate) id: u8,
    /// What it holds, decompressed.
    pub(crate) raw: &'a [u8],
    /// Its length in the log, bytes: the measure of how much it may ask for.
    pub(crate) stored: usize,
}

/// Takes payloads apart. It keeps its buffers.
pub(crate) struct SectionReader {
    raw: Vec<u8>,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl SectionReader {
    pub(crate) fn new() -> io::Result<SectionReader> {
        Ok(SectionReader {
            raw: Vec::new(),
            zstd: zstd::bulk::Decompressor::new()?,
        })
    }

    /// Hands each section of `payload` to `each`.
    pub(crate) fn read(
        &mut self,
        payload: &[u8],
        mut each: impl FnMut(Section<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let mut cursor = Cursor(payload);
        for info in read_table(&mut cursor)? {
            let stored = cursor.take(info.stored)?;
            let raw = match info.encoding {
                STORED if info.stored == info.raw && info.raw <= MAX_RAW => stored,
                ZSTD => self.inflate(stored, info.raw)?,
                _ => return Err(Malformed),
            };
            each(Section {
                id: info.id,
                raw,
                stored: info.stored,
            })?;
        }
        if cursor.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    fn inflate(&mut self, stored: &[u8], raw: usize) -> Result<&[u8], Malformed> {
        if raw > MAX_RAW || stored.len() < least_stored(raw) {
            return Err(Malformed);
        }
        self.raw.clear();
        self.raw.reserve(raw);
        let got = self.zstd.decompress_to_buffer(stored, &mut self.raw);
        match got {
            Ok(n) if n == raw => Ok(&self.raw),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(raw: &[u8], least: usize) -> Vec<u8> {
        let mut builder = BlockBuilder::new().unwrap();
        builder.start(1);
        builder.add(9, raw, least).unwrap();
        builder
            .finish(&mut BlockHeader::default())
            .unwrap()
            .to_vec()
    }

    fn read(payload: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        SectionReader::new().unwrap().read(payload, |section| {
            assert_eq!(section.id, 9);
            out = section.raw.to_vec();
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn sections_are_stored_as_is_unless_compression_helps() {
        let short = block(b"abc", 0);
        assert_eq!(short[HEADER_LEN..], *b"\x01\x09\x00\x03\0\0\0\x03\0\0\0abc");
        assert_eq!(read(&short[HEADER_LEN..]), Ok(b"abc".to_vec()));
        let text = b"maps and unmaps ".repeat(100);
        let long = block(&text, 0);
        assert!(long.len() < text.len() / 2);
        assert_eq!(read(&long[HEADER_LEN..]), Ok(text));
    }

    /// Length of what comes before the stored bytes of the only section.
    const FRONT: usize = HEADER_LEN + 1 + ENTRY_LEN;

    #[test]
    fn what_claims_too_much_memory_is_neither_written_nor_believed() {
        for (raw, stored) in [
            (SMALL_RAW, SMALL_RAW / MAX_SMALL_RATIO),
            (SMALL_RAW + 1, SMALL_RAW / MAX_RATIO + 1),
            (MAX_RAW, MAX_RAW / MAX_RATIO),
        ] {
            let whole = block(&vec![0; raw], 0);
            assert_eq!(whole.len(), FRONT + stored, "{raw} zeros are padded");
            assert_eq!(read(&whole[HEADER_LEN..]).map(|raw| raw.len()), Ok(raw));
        }
        let mut builder = BlockBuilder::new().unwrap();
        assert!(builder.add(9, &vec![0; MAX_RAW + 1], 0).is_err());

        let zeros = block(&[0; 1000], 0);
        let frame = &zeros[FRONT..];
        let mut payload = vec![1, 9, ZSTD, frame.len() as u8, 0, 0, 0, 0, 0, 0, 0];
        payload.extend_from_slice(frame);
        for claim in [999, 1001, MAX_RAW, u32::MAX as usize] {
            payload[7..11].copy_from_slice(&(claim as u32).to_le_bytes());
            assert_eq!(read(&payload), Err(Malformed), "{claim} bytes");
        }
        // A megabyte in its hundred bytes, as the padding would have it otherwise.
        let bare = zstd::bulk::compress(&vec![0; SMALL_RAW], LEVEL).unwrap();
        let mut payload = vec![1, 9, ZSTD];
        payload.extend((bare.len() as u32).to_le_bytes());
        payload.extend((SMALL_RAW as u32).to_le_bytes());
        payload.extend(&bare);
        assert_eq!(read(&payload), Err(Malformed));
    }

    #[test]
    fn a_section_takes_as_many_bytes_as_it_must() {
        for raw in [&b""[..], b"abc", &[7; 500]] {
            let free = block(raw, 0).len();
            for least in [1, 3, 4, 11, 99, 499, 500, 501, 5000] {
                let whole = block(raw, least);
                let len = whole.len() - FRONT;
                // A frame that means nothing takes 8 bytes itself.
                let enough = (free - FRONT).max(least);
                assert!((enough..enough + 24).contains(&len), "{least}: {len}");
                assert_eq!(read(&whole[HEADER_LEN..]), Ok(raw.to_vec()));
            }
        }
    }

    #[test]
    fn bytes_before_or_after_the_sections_are_malformed() {
        let mut payload = block(b"abc", 0)[HEADER_LEN..].to_vec();
        payload.push(0);
        assert_eq!(read(&payload), Err(Malformed));
        payload.truncate(payload.len() - 2);
        assert_eq!(read(&payload), Err(Malformed));
        assert_eq!(read(&[]), Err(Malformed));
    }
}
