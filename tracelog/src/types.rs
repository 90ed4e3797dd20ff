//! The small words that every layer shares: addresses, ids, times, stamps, permissions.
//!
//! Everything here is a plain value. A bare `u64` is left to codecs; elsewhere the type says which
//! kind of number it is.

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Serialize, Serializer};

/// Size of a page on x86-64, in bytes. Every range of the kernel's begins and ends on it.
pub const PAGE: u64 = 4096;

/// A virtual address in a traced space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Addr(pub u64);

impl Addr {
    /// The first page start at or above this address (saturating at the last page).
    #[must_use]
    pub fn page_up(self) -> Addr {
        Addr(self.0.saturating_add(PAGE - 1) & !(PAGE - 1))
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A half-open range of addresses, `start <= address < end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Range {
    /// First address inside.
    pub start: Addr,
    /// First address past the range.
    pub end: Addr,
}

impl Range {
    /// The pages that `[start, start + len)` touches, rounded outwards as the kernel does. `None`
    /// when it is empty or wraps around.
    #[must_use]
    pub fn pages(start: u64, len: u64) -> Option<Range> {
        let end = start.checked_add(len)?.checked_add(PAGE - 1)? & !(PAGE - 1);
        let start = start & !(PAGE - 1);
        (start < end).then_some(Range {
            start: Addr(start),
            end: Addr(end),
        })
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether no address is inside.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether `addr` is inside.
    #[must_use]
    pub fn contains(self, addr: Addr) -> bool {
        self.start <= addr && addr < self.end
    }

    /// The common part of two ranges, if any.
    #[must_use]
    pub fn intersect(self, other: Range) -> Option<Range> {
        let r = Range {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        };
        (!r.is_empty()).then_some(r)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.start.0, self.end.0)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A process (thread group) id, as the recorder's pid namespace sees it.
    Pid(u32)
);
id!(
    /// A thread id, as the recorder's pid namespace sees it.
    Tid(u32)
);
id!(
    /// One address space (the kernel's mm). Never reused within a log; counted from 0.
    SpaceId(u32)
);
id!(
    /// One traced thread. Never reused within a log (tids are); counted from 0.
    ThreadIx(u32)
);
id!(
    /// An interned stack: the id of its innermost node. 0 means that no stack was taken.
    StackId(u32)
);
id!(
    /// A module that frames lie in. 0 is "no module": the frame's offset is then an absolute address.
    ModuleId(u32)
);
id!(
    /// What lies behind a mapping (see [`crate::record::FileInfo`]). 0 is plain anonymous memory.
    FileId(u32)
);
id!(
    /// A position in the one order of all stops: an atomic counter over all tracer threads.
    Stamp(u64)
);
id!(
    /// Nanoseconds since the window opened (CLOCK_MONOTONIC).
    Nanos(u64)
);

impl Nanos {
    /// The same time in seconds.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl StackId {
    /// No stack was taken.
    pub const NONE: StackId = StackId(0);
}

impl FileId {
    /// Plain anonymous memory.
    pub const ANON: FileId = FileId(0);
}

/// Permissions of a mapping as `/proc/PID/maps` prints them: `rwx` and shared or private.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Perms(pub u8);

impl Perms {
    /// Readable.
    pub const R: u8 = 1;
    /// Writable.
    pub const W: u8 = 2;
    /// Executable.
    pub const X: u8 = 4;
    /// Shared (`s`), else private (`p`).
    pub const S: u8 = 8;

    /// From PROT_READ, PROT_WRITE and PROT_EXEC (whose values the first three bits share).
    #[must_use]
    pub fn from_prot(prot: u64, shared: bool) -> Perms {
        Perms((prot & 7) as u8 | if shared { Perms::S } else { 0 })
    }

    /// Any of `rwx`: the memory is accessible, which is what *committed* means.
    #[must_use]
    pub fn accessible(self) -> bool {
        self.0 & 7 != 0
    }

    /// Executable.
    #[must_use]
    pub fn executable(self) -> bool {
        self.0 & Perms::X != 0
    }

    /// Shared, as opposed to private.
    #[must_use]
    pub fn shared(self) -> bool {
        self.0 & Perms::S != 0
    }

    /// The same with other `rwx` bits.
    #[must_use]
    pub fn with_prot(self, prot: u64) -> Perms {
        Perms((self.0 & Perms::S) | (prot & 7) as u8)
    }

    /// Reads the four characters of a maps line.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Perms> {
        let [r, w, x, s] = *text else { return None };
        let bit = |c: u8, on: u8, bit: u8| match c {
            c if c == on => Some(bit),
            b'-' => Some(0),
            _ => None,
        };
        let shared = match s {
            b's' => Perms::S,
            b'p' => 0,
            _ => return None,
        };
        Some(Perms(
            bit(r, b'r', Perms::R)? | bit(w, b'w', Perms::W)? | bit(x, b'x', Perms::X)? | shared,
        ))
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = |bit: u8, c: char| if self.0 & bit != 0 { c } else { '-' };
        let s = if self.shared() { 's' } else { 'p' };
        write!(
            f,
            "{}{}{}{s}",
            c(Perms::R, 'r'),
            c(Perms::W, 'w'),
            c(Perms::X, 'x')
        )
    }
}

impl fmt::Debug for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Perms {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
