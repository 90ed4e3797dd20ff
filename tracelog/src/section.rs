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
/// A compressed section of more than [`FREE_RAW`] bytes is at most so many times as long as what is
/// stored of it, so that a small log cannot ask for much memory. Sections that would compress better
/// are stored as they are; real ones do not come near.
const MAX_RATIO: usize = 128;
/// Sections up to this raw length may be compressed to anything, bytes.
const FREE_RAW: usize = 1 << 20;
/// Length of an entry of the section table, bytes.
pub(crate) const ENTRY_LEN: usize = 10;
/// Sections in a block at most.
pub(crate) const MAX_SECTIONS: usize = 16;

const STORED: u8 = 0;
const ZSTD: u8 = 1;
const LEVEL: i32 = 1;

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

    /// Adds a section, compressed where that makes it smaller.
    pub(crate) fn add(&mut self, id: u8, raw: &[u8]) -> io::Result<()> {
        if raw.len() > MAX_RAW {
            return Err(too_large());
        }
        self.scratch.clear();
        self.scratch
            .reserve(zstd::zstd_safe::compress_bound(raw.len()));
        self.zstd.compress_to_buffer(raw, &mut self.scratch)?;
        let worth_it = self.scratch.len() < raw.len();
        let (encoding, bytes) = if worth_it && believable(self.scratch.len(), raw.len()) {
            (ZSTD, &self.scratch[..])
        } else {
            (STORED, raw)
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

fn believable(stored: usize, raw: usize) -> bool {
    raw <= FREE_RAW || raw <= stored.saturating_mul(MAX_RATIO)
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

    /// Hands each section of `payload`, decompressed, to `each`.
    pub(crate) fn read(
        &mut self,
        payload: &[u8],
        mut each: impl FnMut(u8, &[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let mut cursor = Cursor(payload);
        for info in read_table(&mut cursor)? {
            let stored = cursor.take(info.stored)?;
            match info.encoding {
                STORED if info.stored == info.raw && info.raw <= MAX_RAW => each(info.id, stored)?,
                ZSTD => {
                    self.inflate(stored, info.raw)?;
                    each(info.id, &self.raw)?;
                }
                _ => return Err(Malformed),
            }
        }
        if cursor.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    fn inflate(&mut self, stored: &[u8], raw: usize) -> Result<(), Malformed> {
        if raw > MAX_RAW || !believable(stored.len(), raw) {
            return Err(Malformed);
        }
        self.raw.clear();
        self.raw.reserve(raw);
        let got = self.zstd.decompress_to_buffer(stored, &mut self.raw);
        match got {
            Ok(n) if n == raw => Ok(()),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(raw: &[u8]) -> Vec<u8> {
        let mut builder = BlockBuilder::new().unwrap();
        builder.start(1);
        builder.add(9, raw).unwrap();
        builder
            .finish(&mut BlockHeader::default())
            .unwrap()
            .to_vec()
    }

    fn read(payload: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        SectionReader::new().unwrap().read(payload, |id, raw| {
            assert_eq!(id, 9);
            out = raw.to_vec();
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn sections_are_stored_as_is_unless_compression_helps() {
        let short = block(b"abc");
        assert_eq!(short[HEADER_LEN..], *b"\x01\x09\x00\x03\0\0\0\x03\0\0\0abc");
        assert_eq!(read(&short[HEADER_LEN..]), Ok(b"abc".to_vec()));
        let text = b"maps and unmaps ".repeat(100);
        let long = block(&text);
        assert!(long.len() < text.len() / 2);
        assert_eq!(read(&long[HEADER_LEN..]), Ok(text));
    }

    #[test]
    fn what_claims_too_much_memory_is_neither_written_nor_believed() {
        let zeros = vec![0; FREE_RAW + 1];
        let whole = block(&zeros);
        assert!(whole.len() > zeros.len(), "stored as it is");
        assert_eq!(
            read(&whole[HEADER_LEN..]).map(|raw| raw.len()),
            Ok(zeros.len())
        );
        assert!(
            BlockBuilder::new()
                .unwrap()
                .add(9, &vec![0; MAX_RAW + 1])
                .is_err()
        );

        let mut payload = block(&vec![0; FREE_RAW])[HEADER_LEN..].to_vec();
        assert!(payload.len() < 1000);
        assert_eq!(read(&payload).map(|raw| raw.len()), Ok(FREE_RAW));
        for claim in [FREE_RAW - 1, FREE_RAW + 1, MAX_RAW, u32::MAX as usize] {
            payload[7..11].copy_from_slice(&(claim as u32).to_le_bytes());
            assert_eq!(read(&payload), Err(Malformed), "{claim} bytes");
        }
    }

    #[test]
    fn bytes_before_or_after_the_sections_are_malformed() {
        let mut payload = block(b"abc")[HEADER_LEN..].to_vec();
        payload.push(0);
        assert_eq!(read(&payload), Err(Malformed));
        payload.truncate(payload.len() - 2);
        assert_eq!(read(&payload), Err(Malformed));
        assert_eq!(read(&[]), Err(Malformed));
    }
}
