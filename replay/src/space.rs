//! One address space: an ordered map of regions, changed by one operation at a time.
//!
//! It knows nothing of events, time or births beyond their ids; what an operation did is reported as
//! [`Delta`]s, so that every total can be kept in time proportional to what changed.

mod look;
mod moves;

use std::collections::BTreeMap;

use maptrail_tracelog::record::Vma;
use maptrail_tracelog::types::{Addr, Perms, Range, SpaceId, ThreadIx};

use crate::files::Files;
use crate::op::{Delta, Op};
use crate::region::{BirthId, Region};

/// The end of user space on x86-64, with room for five-level page tables. `[vsyscall]` lies beyond.
pub const USER_END: Addr = Addr(1 << 56);

/// A place below which a stack may have pages that the kernel grew and a call then cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Where those pages end, if there are any.
    pub end: Addr,
    /// Their permissions.
    pub perms: Perms,
}

/// How many stubs are remembered for a space; programs leave none or one.
const MAX_STUBS: usize = 64;

/// What an `mremap` has taken away and not yet put down.
#[derive(Clone, Debug)]
struct InTransit {
    thread: ThreadIx,
    range: Range,
    pieces: Vec<Region>,
}

/// One address space.
#[derive(Clone, Debug)]
pub struct Space {
    id: SpaceId,
    /// By start. **Invariant**: [`Space::assert_valid`].
    regions: BTreeMap<u64, Region>,
    start_brk: Addr,
    /// The heap's end, a byte address: what `brk(0)` returns.
    brk: Addr,
    in_transit: Vec<InTransit>,
    stubs: Vec<Stub>,
    reserved_bytes: u64,
    committed_bytes: u64,
}

impl Space {
    /// A space with nothing mapped, whose heap will begin at `start_brk`.
    #[must_use]
    pub fn new(id: SpaceId, start_brk: Addr) -> Space {
        Space {
            id,
            regions: BTreeMap::new(),
            start_brk,
            brk: start_brk,
            in_transit: Vec::new(),
            stubs: Vec::new(),
            reserved_bytes: 0,
            committed_bytes: 0,
        }
    }

    /// The copy that `fork` makes, under its own id. Moves under way stay with the parent.
    #[must_use]
    pub fn forked(&self, id: SpaceId, start_brk: Addr) -> Space {
        Space {
            id,
            start_brk,
            brk: if self.start_brk == start_brk {
                self.brk
            } else {
                start_brk
            },
            in_transit: Vec::new(),
            ..self.clone()
        }
    }

    /// Which space this is.
    #[must_use]
    pub fn id(&self) -> SpaceId {
        self.id
    }

    /// The regions, ascending. Neighbours are joined only where attributes and birth are equal.
    pub fn regions(&self) -> impl DoubleEndedIterator<Item = &Region> {
        self.regions.values()
    }

    /// The regions, and what an `mremap` has under way: all that goes when the space does.
    pub fn everything(&self) -> impl Iterator<Item = &Region> {
        let moving = self.in_transit.iter().flat_map(|t| &t.pieces);
        self.regions.values().chain(moving)
    }

    /// How many regions there are.
    #[must_use]
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// The region that holds an address.
    #[must_use]
    pub fn find(&self, addr: Addr) -> Option<&Region> {
        let (_, region) = self.regions.range(..=addr.0).next_back()?;
        region.range.contains(addr).then_some(region)
    }

    /// The regions that `range` touches, whole, ascending.
    pub fn touching(&self, range: Range) -> impl Iterator<Item = &Region> {
        let first = self
            .find(range.start)
            .map_or(range.start, |r| r.range.start);
        self.regions
            .range(first.0..range.end.0.max(first.0))
            .map(|(_, region)| region)
    }

    /// From `start_brk` to the end of the heap.
    #[must_use]
    pub fn heap(&self) -> Range {
        Range {
            start: self.start_brk,
            end: self.brk,
        }
    }

    /// Places where a stack's grown pages may have been cut off.
    #[must_use]
    pub fn stubs(&self) -> &[Stub] {
        &self.stubs
    }

    /// Bytes mapped.
    #[must_use]
    pub fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    /// Bytes mapped with any of `rwx`.
    #[must_use]
    pub fn committed_bytes(&self) -> u64 {
        self.committed_bytes
    }

    /// Performs `op` and appends what it did to `deltas`.
    pub fn apply(&mut self, op: &Op<'_>, files: &Files, deltas: &mut Vec<Delta>) {
        let before = deltas.len();
        match *op {
            Op::Map { region, fixed } => {
                if fixed {
                    self.unmap(region.range, deltas);
                }
                self.map(region, deltas);
            }
            Op::Unmap(range) => self.unmap(range, deltas),
            Op::Protect {
                range,
                prot,
                from_start,
            } => self.protect(range, prot, from_start, files, deltas),
            Op::Lift { range, thread } => self.lift(range, thread, deltas),
            Op::Land {
                thread,
                to,
                len,
                birth,
            } => self.land(thread, to, len, birth, deltas),
            Op::Extend { range, birth } => self.extend(range, birth, deltas),
            Op::Duplicate { source, to, birth } => self.duplicate(source, to, birth, deltas),
            Op::Alias { from, to, birth } => self.alias(from, to, birth, deltas),
            Op::Brk { end, birth } => self.set_brk(end, birth, deltas),
            Op::BrkIs(end) => self.brk = end,
            Op::DetachShm(addr) => self.detach_shm(addr, files, deltas),
            Op::DetachRing(addr) => self.detach_ring(addr, files, deltas),
            Op::Restore(region) => self.restore(region, deltas),
            Op::Look {
                range,
                vmas,
                birth,
                reborn,
            } => self.look(range, vmas, birth, reborn, files, deltas),
        }
        for delta in deltas.get(before..).unwrap_or_default() {
            let (went, came) = match delta {
                Delta::Gained(r)
                | Delta::Restored(r)
                | Delta::Landed { region: r, .. }
                | Delta::Grown(r) => (None, Some(r)),
                Delta::Released(r) | Delta::Lifted(r) => (Some(r), None),
                Delta::Changed { before, after } => (Some(before), Some(after)),
            };
            let committed = |r: &Region| if r.perms.accessible() { r.len() } else { 0 };
            let sum = |total: u64, of: &dyn Fn(&Region) -> u64| {
                (total + came.map_or(0, of)).saturating_sub(went.map_or(0, of))
            };
            self.reserved_bytes = sum(self.reserved_bytes, &Region::len);
            self.committed_bytes = sum(self.committed_bytes, &committed);
        }
    }

    /// Sets the heap's end as the kernel's list shows it, unless what is known agrees with the list.
    pub fn settle_brk(&mut self, vmas: &[Vma], files: &Files) {
        let heap_end = vmas
            .iter()
            .filter(|vma| files.path(vma.file) == "[heap]")
            .map(|vma| vma.range.end)
            .max()
            .unwrap_or(self.start_brk);
        if self.brk.page_up() != heap_end.page_up() {
            self.brk = heap_end;
        }
    }

    /// Makes a region border at `addr`.
    fn split_at(&mut self, addr: Addr) {
        let Some((_, region)) = self.regions.range_mut(..addr.0).next_back() else {
            return;
        };
        let upper = Range {
            start: addr,
            end: region.range.end,
        };
        let Some(upper) = region.clipped(upper) else {
            return;
        };
        region.range.end = addr;
        self.regions.insert(addr.0, upper);
    }

    /// Takes everything in `range` out, ascending, cutting at its borders.
    fn carve(&mut self, range: Range, mut taken: impl FnMut(Region)) {
        if range.is_empty() {
            return;
        }
        // Most releases are of exactly one region.
        if let Some(region) = self.regions.get(&range.start.0)
            && region.range.end == range.end
        {
            taken(*region);
            self.regions.remove(&range.start.0);
            return;
        }
        // And most acquisitions are of a place where nothing is.
        match self.regions.range(..range.end.0).next_back() {
            Some((_, last)) if last.range.end > range.start => {}
            _ => return,
        }
        self.split_at(range.start);
        self.split_at(range.end);
        while let Some((&start, region)) = self.regions.range(range.start.0..range.end.0).next() {
            taken(*region);
            self.regions.remove(&start);
        }
    }

    fn map(&mut self, region: Region, deltas: &mut Vec<Delta>) {
        if !region.is_well_formed() {
            return;
        }
        self.carve(region.range, |old| deltas.push(Delta::Released(old)));
        self.regions.insert(region.range.start.0, region);
        deltas.push(Delta::Gained(region));
    }

    fn unmap(&mut self, range: Range, deltas: &mut Vec<Delta>) {
        let mut lowest = None;
        self.carve(range, |old| {
            lowest.get_or_insert(old);
            deltas.push(Delta::Released(old));
        });
        self.cut_stack(range, lowest);
    }

    /// A call has taken `range` from what is mapped, or is about to change it; `lowest` is what the
    /// model has, or had, there first. If that is a piece of a stack, which the kernel may have grown,
    /// whatever the stack has below stays as it is, and ends where the piece begins.
    fn cut_stack(&mut self, range: Range, lowest: Option<Region>) {
        let stack = match lowest {
            Some(lowest) => lowest.reaches_down_to(range.start).then_some(lowest),
            None => self.stack_above(range.end, range.start),
        };
        let Some(stack) = stack else { return };
        let below = self.stubs.iter().find(|s| s.end == stack.range.start);
        let perms = below.map_or(stack.perms, |stub| stub.perms);
        self.leave_stub(range.start, perms);
    }

    /// The stack that is next at or above `addr`, if it may have grown down to `bottom`.
    fn stack_above(&self, addr: Addr, bottom: Addr) -> Option<Region> {
        let (_, above) = self.regions.range(addr.0..).next()?;
        above.reaches_down_to(bottom).then_some(*above)
    }

    /// What the kernel may have grown below `end` keeps these permissions.
    fn leave_stub(&mut self, end: Addr, perms: Perms) {
        let stub = Stub { end, perms };
        let is_hole = self.find(Addr(end.0.saturating_sub(1))).is_none();
        if is_hole && self.stubs.len() < MAX_STUBS && !self.stubs.contains(&stub) {
            self.stubs.push(stub);
        }
    }

    fn protect(
        &mut self,
        range: Range,
        prot: u64,
        from_start: bool,
        files: &Files,
        deltas: &mut Vec<Delta>,
    ) {
        self.grow_into(range, deltas);
        let mut range = range;
        if from_start {
            while let Some(&region) = self.find(range.start) {
                range.start = region.range.start;
                match self.find(Addr(range.start.0.saturating_sub(1))) {
                    Some(below) if below.joins(&region, files) => range.start = below.range.start,
                    _ => break,
                }
            }
        }
        if !from_start {
            let lowest = self.touching(range).next().copied();
            self.cut_stack(range, lowest);
        }
        self.split_at(range.start);
        self.split_at(range.end);
        for (_, region) in self.regions.range_mut(range.start.0..range.end.0) {
            let before = *region;
            region.perms = region.perms.with_prot(prot);
            if before != *region {
                deltas.push(Delta::Changed {
                    before,
                    after: *region,
                });
            }
        }
        self.coalesce(range);
    }

    /// A call succeeded on all of `range`, so where the model has a hole right below a stack the
    /// kernel has grown the stack into it. (A log that lost a chunk has other holes.)
    fn grow_into(&mut self, range: Range, deltas: &mut Vec<Delta>) {
        let lowest = self.touching(range).next().map(|r| r.range.start);
        if lowest.is_some_and(|lowest| lowest <= range.start) {
            return;
        }
        let above = lowest.unwrap_or(range.end);
        let Some(stack) = self.stack_above(above, range.start) else {
            return;
        };
        self.regions.remove(&stack.range.start.0);
        let mut grown = stack;
        grown.range.start = range.start;
        self.regions.insert(range.start.0, grown);
        grown.range.end = stack.range.start;
        deltas.push(Delta::Grown(grown));
    }

    /// Joins neighbours of equal attributes and birth inside `range` and at its borders, so that
    /// toggling permissions does not leave ever more pieces.
    fn coalesce(&mut self, range: Range) {
        let first = self
            .regions
            .range(..range.start.0)
            .next_back()
            .map_or(range.start.0, |(&start, _)| start);
        let mut at = first;
        loop {
            let mut two = self.regions.range(at..=range.end.0).map(|(_, r)| *r);
            let (Some(lower), Some(upper)) = (two.next(), two.next()) else {
                return;
            };
            let joined = Range {
                start: lower.range.start,
                end: upper.range.end,
            };
            let continued = Region {
                range: joined,
                ..lower
            };
            if lower.range.end == upper.range.start && continued.clipped(upper.range) == Some(upper)
            {
                self.regions.remove(&upper.range.start.0);
                self.regions.insert(joined.start.0, continued);
                at = joined.start.0;
            } else {
                at = upper.range.start.0;
            }
        }
    }

    fn set_brk(&mut self, end: Addr, birth: BirthId, deltas: &mut Vec<Delta>) {
        let (old, new) = (self.brk.page_up(), end.page_up());
        // A heap that ended at 0 is one that the log does not know: this only tells where it ends now.
        if new > old && old > Addr(0) {
            let range = Range {
                start: old,
                end: new,
            };
            self.map(Region::anonymous(range, birth), deltas);
        } else if new < old {
            let range = Range {
                start: new,
                end: old,
            };
            self.carve(range, |gone| deltas.push(Delta::Released(gone)));
        }
        self.brk = end;
    }

    /// As the kernel does: the first mapping at or above `addr` that lies at its own offset from it
    /// names the segment; all mappings of the segment that lie at their own offset go.
    fn detach_shm(&mut self, addr: Addr, files: &Files, deltas: &mut Vec<Delta>) {
        let own = |r: &&Region| {
            r.offset == r.range.start.0 - addr.0 && files.path(r.file).starts_with("/SYSV")
        };
        let Some(first) = self.regions.range(addr.0..).map(|(_, r)| r).find(own) else {
            return;
        };
        let key = files.key(first.file);
        let parts: Vec<Range> = self
            .regions
            .range(first.range.start.0..)
            .map(|(_, r)| r)
            .filter(|r| own(r) && files.key(r.file) == key)
            .map(|r| r.range)
            .collect();
        for part in parts {
            self.carve(part, |gone| deltas.push(Delta::Released(gone)));
        }
    }

    fn detach_ring(&mut self, addr: Addr, files: &Files, deltas: &mut Vec<Delta>) {
        let mut parts = self.regions.range(addr.0..).map(|(_, r)| *r);
        let Some(mut last) = parts.next().filter(|r| r.range.start == addr) else {
            return;
        };
        for next in parts {
            if !last.joins(&next, files) {
                break;
            }
            last = next;
        }
        let range = Range {
            start: addr,
            end: last.range.end,
        };
        self.carve(range, |gone| deltas.push(Delta::Released(gone)));
    }

    /// Panics unless the regions are well formed, keyed by their start, ascending and apart, and the
    /// totals are their sums. For tests.
    pub fn assert_valid(&self) {
        let mut end = Addr(0);
        let (mut reserved, mut committed) = (0, 0);
        for (&start, region) in &self.regions {
            assert!(region.is_well_formed(), "{region:?}");
            assert_eq!(start, region.range.start.0, "keyed by another start");
            assert!(
                end <= region.range.start,
                "{region:?} overlaps the one below"
            );
            assert!(
                region.backed || region.offset == 0,
                "{region:?} has an offset"
            );
            end = region.range.end;
            reserved += region.len();
            committed += if region.perms.accessible() {
                region.len()
            } else {
                0
            };
        }
        assert_eq!(reserved, self.reserved_bytes, "reserved");
        assert_eq!(committed, self.committed_bytes, "committed");
    }
}
