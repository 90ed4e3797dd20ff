//! The small operations that change a space, and what each reports back.
//!
//! An operation is what a call or a look did, already known to have happened: nothing here fails.
//! How calls become operations is told in `calls`; how a space takes one, in `space`.

use maptrail_tracelog::record::Vma;
use maptrail_tracelog::types::{Addr, Range, ThreadIx};

use crate::region::{BirthId, Region};

/// One change of a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// `region` is mapped.
    Map {
        /// What.
        region: Region,
        /// MAP_FIXED: what was there goes. Without it the kernel chose a place where nothing was.
        fixed: bool,
    },
    /// Nothing is mapped in the range any more.
    Unmap(Range),
    /// The range has these PROT_READ, PROT_WRITE and PROT_EXEC bits.
    Protect {
        /// Where.
        range: Range,
        /// The new bits.
        prot: u64,
        /// PROT_GROWSDOWN: from the start of the mapping that holds the range's start.
        from_start: bool,
    },
    /// First half of an `mremap` that moves: takes the range out of the space and keeps it for this
    /// thread until it lands.
    Lift {
        /// The source.
        range: Range,
        /// Whose call.
        thread: ThreadIx,
    },
    /// Second half: puts what the thread lifted at `to`, gaps and all; what was there goes.
    Land {
        /// Whose call.
        thread: ThreadIx,
        /// Where its first byte lands.
        to: Addr,
        /// The length asked for; pages past those lifted are new and have this birth.
        len: u64,
        /// Birth of the new pages.
        birth: BirthId,
    },
    /// A mapping is made longer in place: the pages of `range` are new and continue the region that
    /// ends where it starts.
    Extend {
        /// The new pages.
        range: Range,
        /// Their birth.
        birth: BirthId,
    },
    /// What is mapped in `source` appears a second time, from `to` on, holes and all
    /// (MREMAP_DONTUNMAP).
    Duplicate {
        /// The source, which stays.
        source: Range,
        /// Where the copy's first byte is.
        to: Addr,
        /// Birth of the copy.
        birth: BirthId,
    },
    /// The mapping at `from` appears a second time at `to`, to whatever length (an `mremap` of old
    /// size 0).
    Alias {
        /// The first byte to appear.
        from: Addr,
        /// Where.
        to: Range,
        /// Birth of the new mapping.
        birth: BirthId,
    },
    /// The heap ends here now (a byte address): pages in between come or go.
    Brk {
        /// The new end.
        end: Addr,
        /// Birth of the pages that come.
        birth: BirthId,
    },
    /// The heap ends here (a byte address), as the kernel said; no page changes.
    BrkIs(Addr),
    /// `shmdt`: all parts of the attached segment that begins, or began, at this address.
    DetachShm(Addr),
    /// `io_destroy`: the ring that begins at this address.
    DetachRing(Addr),
    /// A release of this region was told and not made: where nothing came in its place, it is still
    /// there.
    Restore(Region),
    /// The kernel showed `vmas` in `range`.
    Look {
        /// Where it was looked.
        range: Range,
        /// What is mapped there, clipped to `range`, ascending.
        vmas: &'a [Vma],
        /// Birth of memory that the model did not have.
        birth: BirthId,
        /// Give that birth to memory that the model had, too: a call made all of it.
        reborn: bool,
    },
}

/// What an operation did to some pages. Sums over these keep every total up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delta {
    /// These pages came into being.
    Gained(Region),
    /// These pages went.
    Released(Region),
    /// They did not, as was found later: takes back a [`Delta::Released`].
    Restored(Region),
    /// These pages have other attributes now.
    Changed {
        /// As they were.
        before: Region,
        /// As they are.
        after: Region,
    },
    /// An `mremap` took these pages away; they will land elsewhere.
    Lifted(Region),
    /// They landed here.
    Landed {
        /// Where they were.
        from: Range,
        /// As they are.
        region: Region,
    },
    /// The start of a growing stack was found to be lower: the kernel made these pages by itself.
    Grown(Region),
}
