//! A region: a run of pages with equal attributes, as a value, and the rule by which neighbours join.
//!
//! The kernel may leave equal neighbours apart, or join what two calls made; so both sides of every
//! comparison are joined by the rule here first. Nothing in this file changes a space.

use maptrail_tracelog::record::Vma;
use maptrail_tracelog::types::{Addr, FileId, PAGE, Perms, Range};
use serde::{Serialize, Serializer};

use crate::files::Files;

/// How far down from its end a stack may have grown by itself, bytes. Its limit is not in the log, and
/// may be anything; but this much the kernel leaves free below the stack of a program, however small
/// that limit, when it chooses where mappings go (`MIN_GAP` of `mmap_base`). Further down a hole may be
/// a mapping that was lost.
const STACK_REACH: u64 = 128 << 20;

/// Which call a range was born by. Valid while any byte born by that call is alive in any space; ids
/// of calls whose memory is all gone are given out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BirthId(pub(crate) u32);

impl BirthId {
    /// Memory that was there when the space was first seen, or that the kernel made by itself.
    pub const PRE_EXISTING: BirthId = BirthId(0);

    /// Whether a call inside the window made it.
    #[must_use]
    pub fn is_call(self) -> bool {
        self != BirthId::PRE_EXISTING
    }
}

impl Serialize for BirthId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u32(self.0)
    }
}

/// A run of pages with equal attributes and one birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// Where.
    #[serde(serialize_with = "display")]
    pub range: Range,
    /// `rwx` and shared or private.
    pub perms: Perms,
    /// The kernel may move its start down by itself: the main stack, or one made with MAP_GROWSDOWN.
    pub grows_down: bool,
    /// An inode stands behind it, so that offsets mean something.
    pub backed: bool,
    /// Offset of its start into the file, bytes; 0 where no inode stands behind it.
    pub offset: u64,
    /// What stands behind it.
    pub file: FileId,
    /// The call that made it.
    pub birth: BirthId,
    /// How far up `mremap` has moved it since then, bytes; wraps round where it went down.
    pub moved_by: u64,
}

fn display<S: Serializer>(range: &Range, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(range)
}

impl Region {
    /// What maps shows, as a region of this birth.
    #[must_use]
    pub fn shown(vma: &Vma, birth: BirthId, files: &Files) -> Region {
        let backed = !files.key(vma.file).is_anonymous();
        Region {
            range: vma.range,
            perms: vma.perms,
            grows_down: files.path(vma.file) == "[stack]",
            backed,
            offset: if backed { vma.offset } else { 0 },
            file: vma.file,
            birth,
            moved_by: 0,
        }
    }

    /// Private anonymous memory that can be read and written.
    #[must_use]
    pub fn anonymous(range: Range, birth: BirthId) -> Region {
        Region {
            range,
            perms: Perms(Perms::R | Perms::W),
            grows_down: false,
            backed: false,
            offset: 0,
            file: FileId::ANON,
            birth,
            moved_by: 0,
        }
    }

    /// Whether it is a stack that the kernel may have grown down to `bottom`.
    #[must_use]
    pub fn reaches_down_to(&self, bottom: Addr) -> bool {
        self.grows_down && self.range.end.0.saturating_sub(bottom.0) <= STACK_REACH
    }

    /// Where the byte at `addr` was when its call made it.
    #[must_use]
    pub fn origin_of(&self, addr: Addr) -> Addr {
        Addr(addr.0.wrapping_sub(self.moved_by))
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.range.len()
    }

    /// Whether it has no pages; a region of a space never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Whether its start and end lie on page boundaries, in this order.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        !self.is_empty()
            && self.range.start.0.is_multiple_of(PAGE)
            && self.range.end.0.is_multiple_of(PAGE)
    }

    /// The part of it inside `range`, its offset moved along, if any.
    #[must_use]
    pub fn clipped(&self, range: Range) -> Option<Region> {
        let part = self.range.intersect(range)?;
        let skipped = part.start.0 - self.range.start.0;
        let offset = if self.backed {
            self.offset.wrapping_add(skipped)
        } else {
            0
        };
        Some(Region {
            range: part,
            offset,
            ..*self
        })
    }

    /// Whether `next` continues this region so that the two are one to a reader of maps: adjacent,
    /// of equal permissions, device and inode, and of contiguous offset where there is an inode.
    /// Path, births and stack growth do not bind.
    #[must_use]
    pub fn joins(&self, next: &Region, files: &Files) -> bool {
        self.range.end == next.range.start && self.same_at(next, files)
    }

    /// Whether both would show the same attributes on every page, were `other` mapped where it is:
    /// permissions, device and inode, and the offset counted from a common origin.
    #[must_use]
    pub fn same_at(&self, other: &Region, files: &Files) -> bool {
        if self.perms != other.perms {
            return false;
        }
        if self.file != other.file && files.key(self.file) != files.key(other.file) {
            return false;
        }
        !self.backed
            || self.offset.wrapping_sub(self.range.start.0)
                == other.offset.wrapping_sub(other.range.start.0)
    }
}

/// Joins ascending, non-overlapping regions by [`Region::joins`]. The joined region keeps the first
/// part's birth, offset and file.
pub fn joined<'a>(
    regions: impl IntoIterator<Item = Region> + 'a,
    files: &'a Files,
) -> impl Iterator<Item = Region> + 'a {
    let mut regions = regions.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut whole = regions.next()?;
        while let Some(next) = regions.next_if(|next| whole.joins(next, files)) {
            whole.range.end = next.range.end;
            whole.grows_down |= next.grows_down;
        }
        Some(whole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use maptrail_tracelog::record::FileInfo;

    fn region(start: u64, pages: u64, file: u32, offset: u64) -> Region {
        Region {
            range: Range {
                start: Addr(start),
                end: Addr(start + pages * PAGE),
            },
            perms: Perms(Perms::R),
            grows_down: false,
            backed: (1..=3).contains(&file),
            offset,
            file: FileId(file),
            birth: BirthId::PRE_EXISTING,
            moved_by: 0,
        }
    }

    fn files() -> Files {
        let mut files = Files::default();
        for (id, inode, path) in [
            (1, 7, "/a"),
            (2, 7, "/renamed"),
            (3, 8, "/b"),
            (4, 0, "[heap]"),
        ] {
            let info = FileInfo {
                dev: (u32::from(inode != 0), 0),
                inode,
                path: path.into(),
            };
            files.define(FileId(id), info);
        }
        files
    }

    #[test]
    fn neighbours_join_by_inode_and_offset_but_not_by_name() {
        let files = files();
        let base = region(0x10000, 2, 1, 0x3000);
        assert!(
            base.joins(&region(0x12000, 1, 2, 0x5000), &files),
            "path does not bind"
        );
        assert!(
            !base.joins(&region(0x12000, 1, 1, 0x6000), &files),
            "offset binds"
        );
        assert!(
            !base.joins(&region(0x12000, 1, 3, 0x5000), &files),
            "inode binds"
        );
        assert!(
            !base.joins(&region(0x13000, 1, 1, 0x6000), &files),
            "a gap parts"
        );
        let heap = region(0x10000, 2, 4, 0);
        assert!(
            heap.joins(&region(0x12000, 1, 0, 0), &files),
            "[heap] does not bind"
        );
    }

    #[test]
    fn joining_takes_maximal_runs() {
        let files = files();
        let parts = [
            region(0x10000, 1, 1, 0),
            region(0x11000, 1, 1, 0x1000),
            region(0x12000, 1, 0, 0),
            region(0x13000, 3, 0, 0),
            region(0x20000, 1, 0, 0),
        ];
        let lengths: Vec<u64> = joined(parts, &files).map(|r| r.len() / PAGE).collect();
        assert_eq!(lengths, [2, 4, 1]);
    }

    #[test]
    fn clipping_moves_the_offset_along() {
        let part = Range {
            start: Addr(0x11000),
            end: Addr(0x12000),
        };
        let clipped = region(0x10000, 4, 1, 0x3000).clipped(part);
        assert_eq!(clipped, Some(region(0x11000, 1, 1, 0x4000)));
        assert_eq!(
            region(0x10000, 4, 0, 0).clipped(part),
            Some(region(0x11000, 1, 0, 0))
        );
        assert_eq!(region(0x20000, 4, 0, 0).clipped(part), None);
    }
}
