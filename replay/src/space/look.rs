//! Takes over what the kernel showed in a range.
//!
//! This is for the start of a space and for calls that their arguments do not settle. The model is
//! never corrected by later checkpoints: those only judge it.

use std::collections::VecDeque;

use maptrail_tracelog::record::Vma;
use maptrail_tracelog::types::{Addr, Range};

use super::Space;
use crate::files::Files;
use crate::op::Delta;
use crate::region::{BirthId, Region};

impl Space {
    pub(super) fn look(
        &mut self,
        range: Range,
        vmas: &[Vma],
        birth: BirthId,
        reborn: bool,
        files: &Files,
        deltas: &mut Vec<Delta>,
    ) {
        let mut had = VecDeque::new();
        self.carve(range, |region| had.push_back(region));
        for vma in vmas {
            let Some(shown) = Region::shown(vma, birth, files).clipped(range) else {
                continue;
            };
            let mut at = shown.range.start;
            while at < shown.range.end {
                // What the model has from here on: `Some` part of it lies inside what is shown.
                let Some(old) = had.pop_front_if(|old| old.range.start < shown.range.end) else {
                    self.show(&shown, at, shown.range.end, deltas);
                    break;
                };
                if let Some(gone) = old.clipped(Range {
                    end: at,
                    ..old.range
                }) {
                    deltas.push(Delta::Released(gone));
                }
                let from = old.range.start.max(at);
                let to = old.range.end.min(shown.range.end).max(at);
                self.show(&shown, at, from, deltas);
                let part = Range {
                    start: from,
                    end: to,
                };
                if let (Some(before), Some(mut after)) = (old.clipped(part), shown.clipped(part)) {
                    after.grows_down |= before.grows_down;
                    if reborn && before.birth != birth {
                        deltas.push(Delta::Released(before));
                        deltas.push(Delta::Gained(after));
                    } else {
                        after.birth = before.birth;
                        after.moved_by = before.moved_by;
                        if before != after {
                            deltas.push(Delta::Changed { before, after });
                        }
                    }
                    self.regions.insert(part.start.0, after);
                }
                at = to;
                if let Some(rest) = old.clipped(Range {
                    start: shown.range.end,
                    ..old.range
                }) {
                    // It reaches past what is shown; the next line of the list may have it.
                    had.push_front(rest);
                }
            }
        }
        deltas.extend(had.into_iter().map(Delta::Released));
    }

    /// Puts a region back, where nothing has come in its place.
    pub(super) fn restore(&mut self, region: Region, deltas: &mut Vec<Delta>) {
        let taken: Vec<Range> = self.touching(region.range).map(|r| r.range).collect();
        let mut at = region.range.start;
        for next in taken.iter().map(|r| r.start).chain([region.range.end]) {
            if let Some(part) = region.clipped(Range {
                start: at,
                end: next,
            }) {
                self.regions.insert(part.range.start.0, part);
                deltas.push(Delta::Restored(part));
            }
            at = self.find(next).map_or(next, |r| r.range.end).max(at);
        }
    }

    /// Adds the part of what the kernel showed that the model did not have.
    fn show(&mut self, shown: &Region, from: Addr, to: Addr, deltas: &mut Vec<Delta>) {
        let part = Range {
            start: from,
            end: to,
        };
        if let Some(region) = shown.clipped(part) {
            self.regions.insert(from.0, region);
            deltas.push(Delta::Gained(region));
        }
    }
}
