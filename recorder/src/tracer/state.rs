//! What the tracer knows of threads and spaces.

use std::io;

use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::record::{CallEvent, Outcome, SpaceEnd};
use maptrail_tracelog::types::{FileId, Nanos, Pid, Range, SpaceId, StackId, Stamp, ThreadIx, Tid};

use crate::maps::Maps;
use crate::proc;
use crate::sys::ptrace::{StopError, Stopped};
use crate::tracer::fresh::Fresh;
use crate::tracer::timeouts::Wait;
use crate::tracer::transfers::Transfers;
use crate::unwind::{AddressMap, FIRST_READ};

/// The id of a thread that the log does not know (yet).
pub const NOT_RECORDED: ThreadIx = ThreadIx(u32::MAX);

/// One traced thread.
pub struct Thread {
    /// Its id in the log.
    pub ix: ThreadIx,
    /// Its process.
    pub pid: Pid,
    /// Its name, as far as it was asked for.
    pub name: String,
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
    /// Job control stopped it, which breaks its call off by itself, and no signal came since.
    pub was_stopped: bool,
    /// What it transfers.
    pub transfers: Transfers,
    /// The wait with a timeout that it is in.
    pub wait: Option<Wait>,
    /// Its last call was broken off at this place, and goes on unless job control stops it.
    pub undone: Option<u64>,
    /// Time that it spent standing still since that was last looked at, nanoseconds.
    pub cost_ns: u64,
    /// It is not followed, and let go at its next stop.
    pub let_go: bool,
    /// To be put back at its first stop: its copy of what its maker's call was changed in.
    pub birth_fix: Option<Changed>,
}

impl Thread {
    /// A thread of process `pid` that is not recorded yet.
    #[must_use]
    pub fn new(pid: Pid) -> Thread {
        Thread {
            ix: NOT_RECORDED,
            pid,
            name: String::new(),
            space: None,
            pending: None,
            unseen: None,
            exiting: false,
            stack_wanted: FIRST_READ,
            needs_registers: false,
            was_stopped: false,
            transfers: Transfers::default(),
            wait: None,
            undone: None,
            cost_ns: 0,
            let_go: false,
            birth_fix: None,
        }
    }
}

impl Thread {
    /// Whether the log knows it.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.ix != NOT_RECORDED
    }

    /// Job control stops it. Gives the place of a call that was to go on, and is broken off by that.
    pub fn stopped_by_job_control(&mut self) -> Option<u64> {
        self.was_stopped = true;
        std::mem::take(&mut self.undone)
    }
}

/// A call between its entry and its exit.
pub enum Pending {
    /// A memory call, to be recorded.
    Memory(MemoryCall),
    /// A memory call that began before the window was open.
    Early,
    /// A `clone` or `clone3` whose flags were changed.
    Clone(Changed),
    /// A `clone` or `clone3` that makes a process in the same space, which nobody follows.
    Sharer {
        /// When the call was entered.
        since: Nanos,
    },
    /// A `ptrace` call that wants to trace.
    Ptrace,
}

/// Something of a thread that the tracer changed, as it was before.
#[derive(Clone, Copy)]
pub enum Changed {
    /// The register of a call's first argument.
    Register {
        /// How the call entered.
        abi: Abi,
        /// What it held.
        value: u64,
    },
    /// A word of memory.
    Word {
        /// Where.
        addr: u64,
        /// What it held.
        value: u64,
    },
}

impl Changed {
    /// Puts it back.
    pub fn put_back(self, stopped: &Stopped) -> Result<(), StopError> {
        match self {
            Changed::Register { abi, value } => stopped.set_first_argument(abi, value),
            Changed::Word { addr, value } => stopped.poke(addr, value),
        }
    }
}

/// A thread that stopped at birth before its maker's stop told of it.
pub struct Newborn {
    /// It.
    pub stopped: Stopped,
    /// Since when, CLOCK_MONOTONIC nanoseconds.
    pub since: u64,
    /// How many batches of stops had been collected by then.
    pub batches: u64,
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
    /// Exit stamp.
    pub exit: Stamp,
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
    /// Where the result lies, for calls that store it in memory (i386 `ipc`).
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
