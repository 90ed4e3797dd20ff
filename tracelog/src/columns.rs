//! Columns, and the codec of stack nodes that is made of them.
//!
//! A column holds one number of each of many rows, as varints one after the other. It is stored as
//! its length in bytes and its bytes; a column whose numbers are all 0 is stored as length 0.

use crate::record::StackNode;
use crate::section::Section;
use crate::types::{ModuleId, StackId};
use crate::varint::{self, Cursor, Malformed, delta, undelta};

/// A column being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Column {
    bytes: Vec<u8>,
    /// All its numbers, or-ed: 0 if they are all 0.
    any: u64,
}

impl Column {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.any = 0;
    }

    #[inline]
    pub(crate) fn push(&mut self, value: u64) {
        self.any |= value;
        varint::put(&mut self.bytes, value);
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        if self.any == 0 {
            out.push(0);
        } else {
            varint::put(out, self.bytes.len() as u64);
            out.extend_from_slice(&self.bytes);
        }
    }
}

/// A column being read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColumnReader<'a> {
    left: Cursor<'a>,
    zeros: bool,
}

impl<'a> ColumnReader<'a> {
    pub(crate) fn read(from: &mut Cursor<'a>) -> Result<ColumnReader<'a>, Malformed> {
        let left = from.prefixed()?;
        Ok(ColumnReader {
            left,
            zeros: left.is_empty(),
        })
    }

    #[inline]
    pub(crate) fn next(&mut self) -> Result<u64, Malformed> {
        if self.zeros {
            Ok(0)
        } else {
            self.left.varint()
        }
    }

    /// A number that must fit 32 bits.
    #[inline]
    pub(crate) fn next_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.next()?).map_err(|_| Malformed)
    }

    /// Every number must have been read by now.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.left.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }
}

/// Nodes in one section at most; the writer splits a chunk that has more.
pub(crate) const MAX_NODES: usize = 1 << 18;

/// Nodes in one section for each byte that is stored of it, at most: in memory as much as the events
/// that a byte may stand for.
const MAX_NODES_PER_BYTE: usize = 128;

/// The fewest bytes that may stand for so many nodes.
pub(crate) fn least_stored(nodes: usize) -> usize {
    nodes.div_ceil(MAX_NODES_PER_BYTE)
}

/// Writes stack sections. It only keeps its buffers.
#[derive(Debug, Default)]
pub(crate) struct NodeEncoder {
    columns: [Column; 4],
}

impl NodeEncoder {
    /// Encodes `nodes`, whose ids run from `first` on.
    pub(crate) fn encode(&mut self, first: u32, nodes: &[StackNode], out: &mut Vec<u8>) {
        self.columns.iter_mut().for_each(Column::clear);
        let [parents, modules, offsets, flags] = &mut self.columns;
        let (mut module, mut offset) = (0, 0);
        for (id, node) in (first..).zip(nodes) {
            parents.push(u64::from(id.wrapping_sub(node.parent.0)));
            modules.push(delta(module, u64::from(node.module.0)));
            offsets.push(delta(offset, node.offset));
            flags.push(u64::from(node.flags));
            module = u64::from(node.module.0);
            offset = node.offset;
        }
        varint::put(out, u64::from(first));
        varint::put(out, nodes.len() as u64);
        self.columns.iter().for_each(|c| c.write(out));
    }
}

/// Appends a section's nodes to `nodes` and returns the id of the first.
pub(crate) fn decode_nodes(
    section: Section<'_>,
    nodes: &mut Vec<StackNode>,
) -> Result<StackId, Malformed> {
    let mut cursor = Cursor(section.raw);
    let first = cursor.varint_u32()?;
    let count = cursor.count(MAX_NODES)?;
    if section.stored < least_stored(count) {
        return Err(Malformed);
    }
    // Ids must not wrap around.
    let end = u64::from(first) + count as u64;
    if first == 0 || end > 1 << 32 {
        return Err(Malformed);
    }
    let mut parents = ColumnReader::read(&mut cursor)?;
    let mut modules = ColumnReader::read(&mut cursor)?;
    let mut offsets = ColumnReader::read(&mut cursor)?;
    let mut flags = ColumnReader::read(&mut cursor)?;
    let (mut module, mut offset) = (0, 0);
    nodes.reserve(count);
    for i in 0..count as u32 {
        let parent = first.wrapping_add(i).wrapping_sub(parents.next_u32()?);
        module = undelta(module, modules.next()?);
        offset = undelta(offset, offsets.next()?);
        nodes.push(StackNode {
            parent: StackId(parent),
            module: ModuleId(u32::try_from(module).map_err(|_| Malformed)?),
            offset,
            flags: u8::try_from(flags.next()?).map_err(|_| Malformed)?,
        });
    }
    for column in [parents, modules, offsets, flags] {
        column.finish()?;
    }
    Ok(StackId(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section;
    use proptest::prelude::*;

    fn node() -> impl Strategy<Value = StackNode> {
        (any::<u32>(), any::<u32>(), any::<u64>(), any::<u8>()).prop_map(
            |(parent, module, offset, flags)| StackNode {
                parent: StackId(parent),
                module: ModuleId(module),
                offset,
                flags,
            },
        )
    }

    fn of(raw: &[u8], stored: usize) -> Section<'_> {
        Section {
            id: section::id::STACKS,
            raw,
            stored,
        }
    }

    /// Decodes a section that is stored as it is.
    fn decode(raw: &[u8], nodes: &mut Vec<StackNode>) -> Result<StackId, Malformed> {
        decode_nodes(of(raw, raw.len()), nodes)
    }

    #[test]
    fn nodes_that_take_next_to_nothing_are_not_believed() {
        // From 1 on, 4096 of them, and four columns of zeros.
        let raw = [1, 0x80, 0x20, 0, 0, 0, 0];
        for (stored, believed) in [(31, false), (32, true)] {
            let decoded = decode_nodes(of(&raw, stored), &mut Vec::new());
            assert_eq!(decoded.is_ok(), believed, "{stored} bytes");
        }
    }

    proptest! {
        #[test]
        fn nodes_come_back(
            first in prop_oneof![1_u32..10, 1_u32..=u32::MAX - 99],
            nodes in prop::collection::vec(node(), 0..99),
        ) {
            let mut out = Vec::new();
            NodeEncoder::default().encode(first, &nodes, &mut out);
            let mut back = Vec::new();
            prop_assert_eq!(decode(&out, &mut back), Ok(StackId(first)));
            prop_assert_eq!(back, nodes);
        }

        #[test]
        fn any_bytes_decode_or_do_not(raw in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut nodes = Vec::new();
            let _ = decode(&raw, &mut nodes);
            prop_assert!(nodes.len() <= MAX_NODES);
        }
    }
}
