//! What the tracer knows of threads and spaces.

use std::io;

use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::record::{CallEvent, Outcome, SpaceEnd};
use maptrail_tracelog::types::{FileId, Nanos, Pid, Range, SpaceId, StackId, Stamp, ThreadIx, Tid};

use crate::maps::Maps;
use crate::proc;
use crate::sys::ptrace::Stopped;
use crate::tracer::fresh::Fresh;
use crate::unwind::{AddressMap, FIRST_READ};

/// One traced thread.
pub struct Thread {
    /// Its id in the log.
    pub ix: ThreadIx,
    /// Its process.
    pub pid: Pid,
    /// Its space; `None` while it is not recorded (before the program's exec, or a child that is
    /// not followed).
    pub space: Option<SpaceId>,
    /// The call that it is in.
    pub pending: Option<Pending>,
    /// Its last memory call, if that was a release whose exit nobody stopped at.
    pub unseen: Option<Unseen>,
    /// It passed its exit stop: its memory may be gone.
    pub exiting: bool,
    /// How much of its stack to read at its next stop, bytes.
    pub stack_wanted: usize,
    /// Stack and instruction pointer were not enough to unwind one of its stacks.
    pub needs_registers: bool,
    /// Its first argument register is to be set to this at its first stop (see `children`).
    pub birth_fix: Option<(Abi, u64)>,
}

impl Thread {
    /// A thread that has made no call yet.
    #[must_use]
    pub fn new(ix: ThreadIx, pid: Pid, space: Option<SpaceId>) -> Thread {
        Thread {
            ix,
            pid,
            space,
            pending: None,
            unseen: None,
            exiting: false,
            stack_wanted: FIRST_READ,
            needs_registers: false,
            birth_fix: None,
        }
    }
}

/// A call between its entry and its exit.
pub enum Pending {
    /// A memory call, to be recorded.
    Memory(MemoryCall),
    /// A `clone` whose flags were changed: the register to put back.
    Clone {
        /// How the call entered.
        abi: Abi,
        /// The flags as the program gave them.
        flags: u64,
    },
    /// A `clone3` whose flags were changed in memory: the word to put back.
    Clone3 {
        /// Where the flags lie.
        addr: u64,
        /// The flags as the program gave them.
        flags: u64,
    },
    /// A `ptrace` call that wants to trace.
    Ptrace,
}

/// A thread that stands at its exit until the other threads of its process are gone.
pub struct Staying {
    /// It.
    pub stopped: Stopped,
    /// How its process ends.
    pub how: SpaceEnd,
    /// Since when, CLOCK_MONOTONIC nanoseconds.
    pub since: u64,
}

/// A release that cannot fail (see [`Fresh`]): it may still be under way, or have been cut off by
/// SIGKILL.
#[derive(Clone, Copy)]
pub struct Unseen {
    /// Entry stamp.
    pub entry: Stamp,
    /// What it releases.
    pub range: Range,
}

/// A memory call in flight.
pub struct MemoryCall {
    /// Which.
    pub call: Call,
    /// How it entered.
    pub abi: Abi,
    /// Its arguments, in the form of [`Call`].
    pub args: [u64; 6],
    /// Where the result lies, for calls that store it in memory (i386 `ipc`, `io_setup`).
    pub result_at: Option<u64>,
    /// Entry stamp.
    pub entry: Stamp,
    /// Its time.
    pub entry_ns: Nanos,
    /// Who made it.
    pub stack: StackId,
}

impl MemoryCall {
    /// The call's event.
    #[must_use]
    pub fn ended(
        &self,
        thread: ThreadIx,
        space: SpaceId,
        outcome: Outcome,
        exit: Stamp,
        exit_ns: Nanos,
    ) -> CallEvent {
        CallEvent {
            thread,
            space,
            call: self.call,
            abi: self.abi,
            args: self.args,
            outcome,
            entry: self.entry,
            exit,
            entry_ns: self.entry_ns,
            exit_ns,
            stack: self.stack,
            file: FileId::ANON,
        }
    }
}

/// One address space.
pub struct Space {
    /// Threads in it that have not passed their exit stop.
    pub threads: u32,
    /// Memory calls in flight in it.
    pub in_flight: u32,
    /// The kernel's view of it.
    pub maps: Maps,
    /// Its code, for the unwinder.
    pub code: AddressMap,
    /// What can be released without a doubt.
    pub fresh: Fresh,
}

impl Space {
    /// The space of a live thread.
    pub fn open(tid: Tid, code: AddressMap) -> io::Result<Space> {
        let file = proc::open_maps(tid)?;
        Ok(Space {
            threads: 1,
            in_flight: 0,
            maps: Maps::new(file),
            code,
            fresh: Fresh::new(usize::MAX / 2),
        })
    }
}

/// The whole user half of an address space.
pub const EVERYWHERE: Range = Range {
    start: maptrail_tracelog::types::Addr(0),
    end: maptrail_tracelog::types::Addr(1 << 63),
};
