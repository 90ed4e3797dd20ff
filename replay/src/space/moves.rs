//! What `mremap` does to a space: lift, land, extend, duplicate.
//!
//! Between lift and land the regions are in no space; their births live on.
//!
//! The source may be memory that the model does not know: mapped by a thread that was not traced. That
//! the call succeeded proves that it was there, so it arrives, with the call as its birth.

use maptrail_tracelog::types::{Addr, PAGE, Perms, Range, ThreadIx};

use super::{InTransit, Space};
use crate::op::Delta;
use crate::region::{BirthId, Region};

impl Space {
    pub(super) fn lift(&mut self, range: Range, thread: ThreadIx, deltas: &mut Vec<Delta>) {
        self.grow_into(range, deltas);
        let mut pieces = Vec::new();
        self.carve(range, |piece| {
            pieces.push(piece);
            deltas.push(Delta::Lifted(piece));
        });
        self.cut_stack(range, pieces.first().copied());
        self.in_transit.push(InTransit {
            thread,
            range,
            pieces,
        });
    }

    pub(super) fn land(
        &mut self,
        thread: ThreadIx,
        to: Addr,
        len: u64,
        birth: BirthId,
        deltas: &mut Vec<Delta>,
    ) {
        let Some(at) = self.in_transit.iter().position(|t| t.thread == thread) else {
            return;
        };
        let InTransit { range, pieces, .. } = self.in_transit.swap_remove(at);
        let moved = |r: Range| translated(r, range.start, to);
        let unknown = unknown(range, &pieces, len != range.len(), birth);
        let all: Vec<Region> = pieces.iter().chain(&unknown).copied().collect();
        self.clear_for(&all, range, len, moved, deltas);
        for piece in &unknown {
            let range = moved(piece.range);
            self.map(Region { range, ..*piece }, deltas);
        }
        for piece in &pieces {
            let region = Region {
                range: moved(piece.range),
                moved_by: piece
                    .moved_by
                    .wrapping_add(to.0.wrapping_sub(range.start.0)),
                ..*piece
            };
            self.regions.insert(region.range.start.0, region);
            deltas.push(Delta::Landed {
                from: piece.range,
                region,
            });
        }
        let grown = Range {
            start: Addr(to.0.wrapping_add(range.len())),
            end: Addr(to.0.wrapping_add(len)),
        };
        self.extend(grown, birth, deltas);
    }

    /// Releases what is mapped where `pieces` of `source` will land: the whole destination, or, when
    /// mappings with holes between or behind them move at once, only what each covers, as the kernel
    /// does.
    fn clear_for(
        &mut self,
        pieces: &[Region],
        source: Range,
        len: u64,
        moved: impl Fn(Range) -> Range,
        deltas: &mut Vec<Delta>,
    ) {
        let has_holes = pieces.iter().map(Region::len).sum::<u64>() < source.len();
        if has_holes {
            for piece in pieces {
                self.carve(moved(piece.range), |old| deltas.push(Delta::Released(old)));
            }
        } else {
            let start = moved(source).start;
            let end = Addr(start.0.saturating_add(len));
            self.unmap(Range { start, end }, deltas);
        }
    }

    pub(super) fn extend(&mut self, range: Range, birth: BirthId, deltas: &mut Vec<Delta>) {
        if range.is_empty() {
            return;
        }
        let before = Range {
            start: Addr(range.start.0.saturating_sub(PAGE)),
            end: range.start,
        };
        let below = match self.find(before.start) {
            Some(below) => *below,
            None => Region::anonymous(before, birth),
        };
        let whole = Region {
            range: Range {
                start: below.range.start,
                end: range.end,
            },
            birth,
            moved_by: 0,
            ..below
        };
        if let Some(region) = whole.clipped(range) {
            self.map(region, deltas);
        }
    }

    pub(super) fn duplicate(
        &mut self,
        source: Range,
        to: Addr,
        birth: BirthId,
        deltas: &mut Vec<Delta>,
    ) {
        self.grow_into(source, deltas);
        let pieces: Vec<Region> = self
            .touching(source)
            .filter_map(|r| r.clipped(source))
            .collect();
        let unknown = unknown(source, &pieces, false, birth);
        let pieces: Vec<Region> = pieces.into_iter().chain(unknown).collect();
        let moved = |r: Range| translated(r, source.start, to);
        self.clear_for(&pieces, source, source.len(), moved, deltas);
        for piece in &pieces {
            let copy = Region {
                range: moved(piece.range),
                birth,
                moved_by: 0,
                ..*piece
            };
            self.map(copy, deltas);
        }
    }

    pub(super) fn alias(&mut self, from: Addr, to: Range, birth: BirthId, deltas: &mut Vec<Delta>) {
        let Some(&source) = self.find(from) else {
            // Nothing but shared memory can be mapped twice.
            let perms = Perms::from_prot(3, true);
            let copy = Region {
                perms,
                ..Region::anonymous(to, birth)
            };
            self.map(copy, deltas);
            return;
        };
        let continued = Region {
            range: Range {
                start: source.range.start,
                end: Addr(from.0.saturating_add(to.len())),
            },
            birth,
            moved_by: 0,
            ..source
        };
        let whole = Range {
            start: from,
            end: continued.range.end,
        };
        if let Some(shown) = continued.clipped(whole) {
            self.map(Region { range: to, ..shown }, deltas);
        }
    }
}

/// What a call found in `source` beside the `pieces` that the model has there: its first page at least,
/// and if it was `one` mapping, all of it. What it was like nobody knows; most
/// memory is like this.
fn unknown(source: Range, pieces: &[Region], one: bool, birth: BirthId) -> Vec<Region> {
    let mut unknown = Vec::new();
    let mut start = source.start;
    for next in pieces.iter().map(Some).chain([None]) {
        let hole = Range {
            start,
            end: next.map_or(source.end, |next| next.range.start),
        };
        if !hole.is_empty() && (one || hole.start == source.start) {
            unknown.push(Region::anonymous(hole, birth));
        }
        start = next.map_or(source.end, |next| next.range.end);
    }
    unknown
}

/// `range`, moved as `from` moves to `to`.
fn translated(range: Range, from: Addr, to: Addr) -> Range {
    let shift = |a: Addr| Addr(a.0.wrapping_sub(from.0).wrapping_add(to.0));
    Range {
        start: shift(range.start),
        end: shift(range.end),
    }
}
