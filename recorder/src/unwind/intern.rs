//! Stacks as ids: equal stacks get equal ids, and stacks that share their outer frames share the
//! nodes for them.
//!
//! Memory grows with the number of different stacks, never with the number of calls.

use std::hash::Hasher;

use maptrail_tracelog::record::StackNode;
use maptrail_tracelog::types::StackId;
use rustc_hash::{FxHashMap, FxHasher};

use super::Frame;

/// Gives ids to stacks. Ids count from 1; a node's parent always has a smaller id.
#[derive(Default)]
pub struct Interner {
    /// Node `i` has the id `i + 1`.
    nodes: Vec<StackNode>,
    ids: FxHashMap<StackNode, StackId>,
    /// Hash of a whole stack to its id; a guess that is checked against `nodes`.
    whole: FxHashMap<u64, StackId>,
    /// How many nodes [`Interner::take_new`] has handed out.
    taken: usize,
}

impl Interner {
    /// No stacks yet.
    #[must_use]
    pub fn new() -> Interner {
        Interner::default()
    }

    /// The id of a stack, innermost frame first. `truncated` says that the stack goes on beyond its
    /// last frame. A stack without frames is [`StackId::NONE`].
    pub fn intern(&mut self, frames: &[Frame], truncated: bool) -> StackId {
        let hash = hash(frames, truncated);
        if let Some(&id) = self.whole.get(&hash)
            && self.is(id, frames, truncated)
        {
            return id;
        }
        let mut parent = StackId::NONE;
        for (depth, frame) in frames.iter().rev().enumerate() {
            let node = StackNode {
                parent,
                module: frame.module,
                offset: frame.offset,
                flags: frame.flags | end_flag(depth == 0, truncated),
            };
            let nodes = &mut self.nodes;
            parent = *self.ids.entry(node).or_insert_with(|| {
                nodes.push(node);
                // Four thousand million different frames would need 200 GB here first.
                StackId(u32::try_from(nodes.len()).unwrap_or(u32::MAX))
            });
        }
        self.whole.insert(hash, parent);
        parent
    }

    /// Appends the nodes that came since the last time, in the order of their ids.
    pub fn take_new(&mut self, into: &mut Vec<StackNode>) {
        into.extend(self.nodes.iter().skip(self.taken));
        self.taken = self.nodes.len();
    }

    /// How many nodes there are; the last one's id.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no stack was interned yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether `id` is the stack of these frames.
    fn is(&self, id: StackId, frames: &[Frame], truncated: bool) -> bool {
        let mut id = id;
        for (height, frame) in (1..=frames.len()).rev().zip(frames) {
            let Some(node) = (id.0 as usize)
                .checked_sub(1)
                .and_then(|i| self.nodes.get(i))
            else {
                return false;
            };
            let flags = frame.flags | end_flag(height == 1, truncated);
            if (node.module, node.offset, node.flags) != (frame.module, frame.offset, flags) {
                return false;
            }
            id = node.parent;
        }
        id == StackId::NONE
    }
}

fn end_flag(outermost: bool, truncated: bool) -> u8 {
    if outermost && truncated {
        StackNode::TRUNCATED
    } else {
        0
    }
}

fn hash(frames: &[Frame], truncated: bool) -> u64 {
    let mut hasher = FxHasher::default();
    for frame in frames {
        // The upper half of an offset is nearly always empty.
        let place = (u64::from(frame.module.0) << 40) ^ (u64::from(frame.flags) << 36);
        hasher.write_u64(frame.offset ^ place);
    }
    hasher.write_u8(u8::from(truncated));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use maptrail_tracelog::types::ModuleId;

    use super::*;

    fn stack(offsets: &[u64]) -> Vec<Frame> {
        offsets
            .iter()
            .map(|&offset| Frame {
                module: ModuleId(1),
                offset,
                flags: 0,
            })
            .collect()
    }

    #[test]
    fn equal_stacks_share_ids_and_outer_frames_share_nodes() {
        let mut interner = Interner::new();
        let a = interner.intern(&stack(&[3, 2, 1]), false);
        let b = interner.intern(&stack(&[4, 2, 1]), false);
        assert_ne!(a, b);
        assert_eq!(interner.intern(&stack(&[3, 2, 1]), false), a);
        assert_eq!(interner.len(), 4);
        let inner = interner.intern(&stack(&[2, 1]), false);
        let mut nodes = Vec::new();
        interner.take_new(&mut nodes);
        assert_eq!(nodes.len(), 4);
        assert_eq!(nodes[a.0 as usize - 1].parent, inner);
        assert_eq!(nodes[b.0 as usize - 1].parent, inner);
        for (i, node) in nodes.iter().enumerate() {
            assert!((node.parent.0 as usize) <= i);
        }
        interner.intern(&stack(&[9, 2, 1]), false);
        let mut more = Vec::new();
        interner.take_new(&mut more);
        assert_eq!(more.iter().map(|n| n.offset).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn a_truncated_stack_is_another_stack() {
        let mut interner = Interner::new();
        let whole = interner.intern(&stack(&[3, 2]), false);
        let cut = interner.intern(&stack(&[3, 2]), true);
        assert_ne!(whole, cut);
        assert_eq!(interner.intern(&stack(&[3, 2]), true), cut);
        let mut nodes = Vec::new();
        interner.take_new(&mut nodes);
        let outer = nodes[nodes[cut.0 as usize - 1].parent.0 as usize - 1];
        assert_eq!(outer.flags, StackNode::TRUNCATED);
        assert_eq!(nodes[cut.0 as usize - 1].flags, 0);
    }

    #[test]
    fn no_frames_is_no_stack() {
        let mut interner = Interner::new();
        assert_eq!(interner.intern(&[], true), StackId::NONE);
        assert_eq!(interner.intern(&[], true), StackId::NONE);
        assert!(interner.is_empty());
    }

    #[test]
    fn a_stack_that_hashes_like_another_keeps_its_own_id() {
        let mut interner = Interner::new();
        let a = stack(&[5, 1]);
        let b = stack(&[6, 1]);
        let id = interner.intern(&a, false);
        interner.whole.insert(hash(&b, false), id);
        let other = interner.intern(&b, false);
        assert_ne!(other, id);
        assert_eq!(interner.intern(&b, false), other);
    }
}
