//! From calls to operations: what each recorded call did to its space, and at which of its two stamps.
//!
//! *Acquire at exit, release at entry*: see the crate's introduction. A failed call does nothing here;
//! where it may have acted in part, the recorder wrote a look at the range.

use maptrail_tracelog::calls::{Call, Effect};
use maptrail_tracelog::record::{CallEvent, Outcome};
use maptrail_tracelog::types::{Addr, Perms, Range};

use crate::files::Files;
use crate::op::Op;
use crate::region::{BirthId, Region};
use crate::space::{Space, USER_END};

/// MAP_SHARED and MAP_SHARED_VALIDATE have this bit, MAP_PRIVATE and MAP_DROPPABLE do not.
pub(crate) const MAP_SHARED: u64 = 0x01;
const MAP_FIXED: u64 = 0x10;
pub(crate) const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MAP_HUGE_SHIFT: u64 = 26;
const DEFAULT_HUGE_SHIFT: u64 = 21;
const MREMAP_FIXED: u64 = 2;
const MREMAP_DONTUNMAP: u64 = 4;
const PROT_GROWSDOWN: u64 = 0x0100_0000;

/// At which of its stamps a call does something, or is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    /// It releases at entry.
    pub entry: bool,
    /// It acquires at exit.
    pub exit: bool,
}

/// Whether `event` is told at its entry: it is a release, and has no other part. `space` is as it stood
/// before the call: whether a `brk` gives back depends on where the heap ended.
#[must_use]
pub fn is_release(event: &CallEvent, space: Option<&Space>) -> bool {
    if event.call.effect() == Effect::Brk {
        return space.is_some_and(|space| at_entry(event, space)[0].is_some());
    }
    !phases(event).exit
}

/// At which of its stamps `event` acts. A call that does nothing acts at its exit.
#[must_use]
pub fn phases(event: &CallEvent) -> Phases {
    let succeeded = event.outcome.value().is_some();
    let (entry, exit) = match event.call.effect() {
        Effect::Unmap | Effect::Detach => (succeeded, !succeeded),
        Effect::Remap | Effect::Brk => (succeeded, true),
        _ => (false, true),
    };
    Phases { entry, exit }
}

/// The pages of `[start, start + len)`, if they are user pages and any.
fn pages(start: u64, len: u64) -> Option<Range> {
    Range::pages(start, len).filter(|range| range.end <= USER_END)
}

/// What a successful `event` does at its entry, in this order.
#[must_use]
pub fn at_entry(event: &CallEvent, space: &Space) -> [Option<Op<'static>>; 2] {
    let [addr, len, new_len, ..] = event.args;
    let Some(result) = event.outcome.value() else {
        return [None, None];
    };
    match event.call {
        Call::Munmap => [pages(addr, len).map(Op::Unmap), None],
        Call::Shmdt => [Some(Op::DetachShm(Addr(addr))), None],
        Call::IoDestroy => [Some(Op::DetachRing(Addr(addr))), None],
        Call::Brk => {
            let down = result == addr && Addr(addr).page_up() < space.heap().end.page_up();
            let op = Op::Brk {
                end: Addr(result),
                birth: BirthId::PRE_EXISTING,
            };
            [down.then_some(op), None]
        }
        Call::Mremap => {
            let form = Remap::of(event, result);
            let whole = pages(addr, len);
            let kept = pages(addr, len.min(new_len)).filter(|_| form != Remap::Copy);
            let tail = whole.zip(kept).map(|(whole, kept)| Range {
                start: kept.end,
                end: whole.end,
            });
            let lift = kept.filter(|_| form == Remap::Move).map(|range| Op::Lift {
                range,
                thread: event.thread,
            });
            // The tail last: a stack that had grown by all of it is then known to reach there.
            [lift, tail.filter(|t| !t.is_empty()).map(Op::Unmap)]
        }
        _ => [None, None],
    }
}

/// What a successful `event` does at its exit; the memory that it makes has this `birth`.
#[must_use]
pub fn at_exit(event: &CallEvent, birth: BirthId, files: &Files) -> Option<Op<'static>> {
    let result = event.outcome.value()?;
    let [a0, a1, a2, ..] = event.args;
    match event.call {
        Call::Mmap | Call::OldMmap | Call::Mmap2 => {
            let region = mapped(event, birth, files)?;
            let fixed = event.args[3] & MAP_FIXED != 0;
            Some(Op::Map { region, fixed })
        }
        Call::Mprotect | Call::PkeyMprotect => Some(Op::Protect {
            range: pages(a0, a1)?,
            prot: a2,
            from_start: a2 & PROT_GROWSDOWN != 0,
        }),
        // A query, or a request that the kernel refused: no page changes, the number is told.
        Call::Brk if result != a0 => Some(Op::BrkIs(Addr(result))),
        Call::Brk => Some(Op::Brk {
            end: Addr(result),
            birth,
        }),
        Call::Mremap => match Remap::of(event, result) {
            Remap::Move => Some(Op::Land {
                thread: event.thread,
                to: Addr(result),
                len: pages(result, a2)?.len(),
                birth,
            }),
            Remap::InPlace => Some(Op::Extend {
                range: Range {
                    start: pages(a0, a1)?.end,
                    end: pages(a0, a2)?.end,
                },
                birth,
            }),
            Remap::Copy if a1 == 0 => Some(Op::Alias {
                from: Addr(a0),
                to: pages(result, a2)?,
                birth,
            }),
            Remap::Copy => Some(Op::Duplicate {
                source: pages(a0, a1)?,
                to: pages(result, a1)?.start,
                birth,
            }),
        },
        _ => None,
    }
}

/// The forms of a successful `mremap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remap {
    Move,
    InPlace,
    /// The source stays.
    Copy,
}

impl Remap {
    fn of(event: &CallEvent, result: u64) -> Remap {
        let [old, old_len, _, flags, ..] = event.args;
        if old_len == 0 || flags & MREMAP_DONTUNMAP != 0 {
            Remap::Copy
        } else if result == old {
            Remap::InPlace
        } else {
            Remap::Move
        }
    }
}

/// What a successful `mmap` made.
pub(crate) fn mapped(event: &CallEvent, birth: BirthId, files: &Files) -> Option<Region> {
    let start = event.outcome.value()?;
    let [_, len, prot, flags, _, offset] = event.args;
    let len = if flags & MAP_HUGETLB != 0 {
        let shift = match flags >> MAP_HUGE_SHIFT & 63 {
            0 => DEFAULT_HUGE_SHIFT,
            shift => shift,
        };
        len.checked_next_multiple_of(1 << shift)?
    } else {
        len
    };
    let backed = !files.key(event.file).is_anonymous();
    let offset = match event.call {
        _ if !backed || flags & MAP_ANONYMOUS != 0 => 0,
        Call::Mmap2 => offset.wrapping_mul(4096),
        _ => offset,
    };
    Some(Region {
        range: pages(start, len)?,
        perms: Perms::from_prot(prot, flags & MAP_SHARED != 0),
        grows_down: flags & MAP_GROWSDOWN != 0,
        backed,
        offset,
        file: event.file,
        birth,
        moved_by: 0,
    })
}

/// The ranges that a call names or returns, whether it succeeded or not: where it can have acted.
#[must_use]
pub fn ranges(event: &CallEvent) -> Vec<Range> {
    let [a0, a1, a2, a3, a4, _] = event.args;
    let value = event.outcome.value();
    let at = |start: u64, len: u64| pages(start, len);
    let found = match event.call.effect() {
        Effect::Map => {
            let fixed = a3 & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0;
            let start = value.or(fixed.then_some(a0));
            vec![start.and_then(|start| at(start, a1))]
        }
        Effect::Remap => {
            let to = value.or((a3 & MREMAP_FIXED != 0).then_some(a4));
            vec![at(a0, a1.max(1)), to.and_then(|to| at(to, a2))]
        }
        Effect::Brk => vec![],
        Effect::Detach => vec![at(a0, 1)],
        Effect::Look => vec![value.and_then(|v| at(v, 1))],
        Effect::Unmap | Effect::Protect | Effect::Advise => match event.call {
            Call::Prctl => vec![at(a2, a3)],
            Call::Mlockall | Call::Munlockall | Call::ProcessMadvise | Call::ArchPrctl => vec![],
            _ => vec![at(a0, a1)],
        },
    };
    found.into_iter().flatten().collect()
}

/// The same call as if it had come back with `value`.
#[must_use]
pub fn returning(event: &CallEvent, value: u64) -> CallEvent {
    CallEvent {
        outcome: Outcome::Returned(value as i64),
        ..*event
    }
}
