//! The index: the list of all blocks, written when a log is finished, and the end mark that leads
//! to it. A reader that finds no good index walks over the block headers instead.

use std::io::{self, Read, Seek};

use crate::block::{
    self, BlockHeader, FIRST_BLOCK, HEADER_LEN, Placed, Scan, kind, read_header, read_payload,
};
use crate::columns::{Column, ColumnReader};
use crate::section::{self, SectionReader};
use crate::varint::{self, Cursor, Malformed, delta, undelta};

/// Length of the end mark: a block whose payload is the offset of the index block.
pub(crate) const END_LEN: u64 = HEADER_LEN as u64 + 8;

/// Encodes the section that lists `blocks`.
pub(crate) fn encode(blocks: &[Placed], out: &mut Vec<u8>) {
    let mut columns: [Column; 8] = Default::default();
    let mut before = BlockHeader::default();
    let mut end = FIRST_BLOCK;
    for block in blocks {
        let (h, b) = (&block.header, &before);
        let values = [
            block.offset.saturating_sub(end),
            u64::from(h.kind),
            u64::from(h.flags),
            delta(u64::from(b.sequence) + 1, u64::from(h.sequence)),
            u64::from(h.payload_len),
            delta(b.first_ns, h.first_ns),
            delta(b.last_ns, h.last_ns),
            delta(b.low_water, h.low_water),
        ];
        for (column, value) in columns.iter_mut().zip(values) {
            column.push(value);
        }
        end = block.end();
        before = block.header;
    }
    varint::put(out, blocks.len() as u64);
    columns.iter().for_each(|c| c.write(out));
}

/// Decodes a section that lists at most `max` blocks. Their checksums are not in it.
fn decode(raw: &[u8], max: usize) -> Result<Vec<Placed>, Malformed> {
    let mut cursor = Cursor(raw);
    let count = cursor.count(max)?;
    let mut next = || ColumnReader::read(&mut cursor);
    let [mut gaps, mut kinds, mut flags, mut sequences] = [next()?, next()?, next()?, next()?];
    let [mut lens, mut firsts, mut lasts, mut waters] = [next()?, next()?, next()?, next()?];
    let mut blocks = Vec::with_capacity(count);
    let mut before = BlockHeader::default();
    let mut end = FIRST_BLOCK;
    for _ in 0..count {
        let sequence = undelta(u64::from(before.sequence) + 1, sequences.next()?);
        let header = BlockHeader {
            kind: u8::try_from(kinds.next()?).map_err(|_| Malformed)?,
            flags: u8::try_from(flags.next()?).map_err(|_| Malformed)?,
            sequence: u32::try_from(sequence).map_err(|_| Malformed)?,
            payload_len: lens.next_u32()?,
            first_ns: undelta(before.first_ns, firsts.next()?),
            last_ns: undelta(before.last_ns, lasts.next()?),
            low_water: undelta(before.low_water, waters.next()?),
            payload_crc: 0,
        };
        let offset = end.checked_add(gaps.next()?).ok_or(Malformed)?;
        let block = Placed { offset, header };
        end = offset.checked_add(header.total_len()).ok_or(Malformed)?;
        blocks.push(block);
        before = header;
    }
    Ok(blocks)
}

/// The blocks of a log of `len` bytes by its index, with the index and the end mark themselves at
/// the end. `None` if it has no index, or one that cannot be right.
pub(crate) fn read<R: Read + Seek>(
    input: &mut R,
    len: u64,
    sections: &mut SectionReader,
) -> io::Result<Option<Scan>> {
    let Some(end_offset) = len.checked_sub(END_LEN) else {
        return Ok(None);
    };
    let mut payload = Vec::new();
    let Some(end) = read_whole(input, end_offset, kind::END, &mut payload)? else {
        return Ok(None);
    };
    let Ok(index_offset) = Cursor(&payload).u64_le() else {
        return Ok(None);
    };
    let Some(index) = read_whole(input, index_offset, kind::INDEX, &mut payload)? else {
        return Ok(None);
    };
    let max = usize::try_from(len).unwrap_or(usize::MAX) / HEADER_LEN;
    let mut blocks = Vec::new();
    let read = sections.read(&payload, |section| {
        if section.id == section::id::INDEX {
            blocks = decode(section.raw, max)?;
        }
        Ok(())
    });
    if read.is_err() {
        return Ok(None);
    }
    blocks.extend([index, end]);
    Ok(account(blocks, len))
}

fn read_whole<R: Read + Seek>(
    input: &mut R,
    offset: u64,
    kind: u8,
    payload: &mut Vec<u8>,
) -> io::Result<Option<Placed>> {
    let Some(header) = read_header(input, offset)? else {
        return Ok(None);
    };
    let block = Placed { offset, header };
    let good = header.kind == kind && read_payload(input, &block, payload)?;
    Ok(good.then_some(block))
}

/// Adds up what lies between the blocks; `None` if they overlap or do not fit the log.
fn account(blocks: Vec<Placed>, len: u64) -> Option<Scan> {
    let mut scan = Scan::default();
    let mut end = FIRST_BLOCK;
    let mut sequence = 0;
    for block in &blocks {
        let gap = block.offset.checked_sub(end)?;
        if gap > 0 {
            let missing = u64::from(block.header.sequence.wrapping_sub(sequence));
            scan.skipped_bytes += gap;
            scan.lost_blocks += block::plausible_loss(missing, gap);
        }
        end = block.end();
        sequence = block.header.sequence.wrapping_add(1);
    }
    scan.blocks = blocks;
    (end == len).then_some(scan)
}
