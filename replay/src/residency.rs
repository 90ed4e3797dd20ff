//! Pages in RAM, laid over the regions of a space.

use maptrail_tracelog::record::Residency;
use maptrail_tracelog::types::{Addr, PAGE, Range};

use crate::region::Region;
use crate::space::Space;

/// The runs of resident pages, ascending.
pub fn resident_ranges(residency: &Residency) -> impl Iterator<Item = Range> {
    let mut page = 0u64;
    residency.resident.iter().map(move |run| {
        let start = page.saturating_add(run.gap);
        page = start.saturating_add(run.pages);
        Range {
            start: Addr(start.saturating_mul(PAGE)),
            end: Addr(page.saturating_mul(PAGE)),
        }
    })
}

/// Tells of every region of `space`, ascending, how many of its bytes were looked at and how many of
/// these are resident; regions that were not looked at are left out.
pub fn by_region(space: &Space, residency: &Residency, mut tell: impl FnMut(&Region, u64, u64)) {
    let mut looked = Overlay::new(residency.looked_at.iter().copied());
    let mut resident = Overlay::new(resident_ranges(residency));
    for region in space.regions() {
        let looked_bytes = looked.bytes_in(region.range);
        if looked_bytes > 0 {
            tell(region, looked_bytes, resident.bytes_in(region.range));
        }
    }
}

/// Ascending ranges, asked for how much of other ascending ranges they cover.
struct Overlay<I: Iterator<Item = Range>> {
    ranges: std::iter::Peekable<I>,
}

impl<I: Iterator<Item = Range>> Overlay<I> {
    fn new(ranges: I) -> Overlay<I> {
        Overlay {
            ranges: ranges.peekable(),
        }
    }

    fn bytes_in(&mut self, region: Range) -> u64 {
        let mut bytes = 0u64;
        while let Some(range) = self.ranges.peek() {
            bytes = bytes.saturating_add(range.intersect(region).map_or(0, Range::len));
            // A range that reaches past this region may cover part of the next one.
            if range.end > region.end {
                break;
            }
            self.ranges.next();
        }
        bytes
    }
}
