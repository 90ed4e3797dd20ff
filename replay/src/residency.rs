//! Pages that were looked for in RAM and in swap, laid over the regions of a space.

use maptrail_tracelog::record::{PageRun, Residency};
use maptrail_tracelog::types::{Addr, PAGE, Range};

use crate::region::Region;
use crate::space::Space;

/// What a look at pages found, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Looked at.
    pub looked_at: u64,
    /// Of these, in RAM.
    pub resident: u64,
    /// Of these, swapped out.
    pub swapped: u64,
}

impl Seen {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Seen) -> Seen {
        Seen {
            looked_at: self.looked_at.saturating_add(other.looked_at),
            resident: self.resident.saturating_add(other.resident),
            swapped: self.swapped.saturating_add(other.swapped),
        }
    }
}

/// Runs of pages as ranges, ascending.
fn ranges(runs: &[PageRun]) -> impl Iterator<Item = Range> {
    let mut page = 0u64;
    runs.iter().map(move |run| {
        let start = page.saturating_add(run.gap);
        page = start.saturating_add(run.pages);
        Range {
            start: Addr(start.saturating_mul(PAGE)),
            end: Addr(page.saturating_mul(PAGE)),
        }
    })
}

/// Tells of every region of `space`, ascending, what was seen of it; regions that were not looked at
/// are left out.
pub fn by_region(space: &Space, residency: &Residency, mut tell: impl FnMut(&Region, Seen)) {
    let mut looked_at = Overlay::new(residency.looked_at.iter().copied());
    let mut resident = Overlay::new(ranges(&residency.resident));
    let mut swapped = Overlay::new(ranges(&residency.swapped));
    for region in space.regions() {
        let seen = Seen {
            looked_at: looked_at.bytes_in(region.range),
            resident: resident.bytes_in(region.range),
            swapped: swapped.bytes_in(region.range),
        };
        if seen.looked_at > 0 {
            tell(region, seen);
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
