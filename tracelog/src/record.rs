//! What a log says, as plain structs: the header, the events, and the records between them.
//!
//! [`CallEvent`]s and [`StackNode`]s are many and have columnar codecs of their own (`columns`);
//! everything else is a [`Record`], rare, and encoded one by one (`meta`).

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};

use crate::calls::{Abi, Call};
use crate::types::{
    Addr, FileId, ModuleId, Nanos, Perms, Pid, Range, SpaceId, StackId, Stamp, ThreadIx, Tid,
};

/// How stops were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// PTRACE_SYSCALL: every call of a thread stops twice.
    Syscall,
    /// A seccomp filter that stops memory calls only.
    Seccomp,
    /// Trampolines and a marker call.
    Gate,
    /// A newer version's variant of this number. It stands in the header, which nothing can be read
    /// without.
    Unknown(u32),
}

impl Mechanism {
    /// The word used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Syscall => "syscall",
            Mechanism::Seccomp => "seccomp",
            Mechanism::Gate => "gate",
            Mechanism::Unknown(_) => "unknown",
        }
    }
}

impl Encode for Mechanism {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let number: u32 = match *self {
            Mechanism::Syscall => 0,
            Mechanism::Seccomp => 1,
            Mechanism::Gate => 2,
            Mechanism::Unknown(number) => number,
        };
        number.encode(encoder)
    }
}

impl<Context> Decode<Context> for Mechanism {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Mechanism, DecodeError> {
        Ok(match u32::decode(decoder)? {
            0 => Mechanism::Syscall,
            1 => Mechanism::Seccomp,
            2 => Mechanism::Gate,
            number => Mechanism::Unknown(number),
        })
    }
}

bincode::impl_borrow_decode!(Mechanism);

/// What the log is about; written once, first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    /// Version of the program that wrote the log.
    pub writer: String,
    /// Host name.
    pub host: String,
    /// Kernel release and version (`uname -rv`).
    pub kernel: String,
    /// The recorded program's argument vector.
    pub command: Vec<String>,
    /// How stops were made.
    pub mechanism: Mechanism,
    /// When the window opened, nanoseconds since the Unix epoch.
    pub wall_start_ns: u64,
    /// The same instant on CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_start_ns: u64,
    /// Page size in bytes.
    pub page_size: u32,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It came back with this value; `-4095..=-1` is a negated errno.
    Returned(i64),
    /// Its thread died, or the window closed, before it came back: it may or may not have acted.
    Unfinished,
}

impl Outcome {
    /// The value of a successful call.
    #[must_use]
    pub fn value(self) -> Option<u64> {
        match self {
            Outcome::Returned(v) if !(-4095..0).contains(&v) => Some(v as u64),
            _ => None,
        }
    }

    /// The positive errno of a failed call.
    #[must_use]
    pub fn errno(self) -> Option<i32> {
        match self {
            Outcome::Returned(v) if (-4095..0).contains(&v) => Some(-v as i32),
            _ => None,
        }
    }
}

/// One memory system call by one thread. Written when it ends, so a log holds events in the order
/// of their exit stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallEvent {
    /// Who made it.
    pub thread: ThreadIx,
    /// The space it acted on.
    pub space: SpaceId,
    /// Which call.
    pub call: Call,
    /// Through which entry into the kernel.
    pub abi: Abi,
    /// The arguments; those past the call's own count are 0.
    pub args: [u64; 6],
    /// Its result.
    pub outcome: Outcome,
    /// Before the thread was let into the call: when a release takes effect.
    pub entry: Stamp,
    /// After the thread came out of it: when an acquisition takes effect.
    pub exit: Stamp,
    /// Time of `entry`.
    pub entry_ns: Nanos,
    /// Time of `exit`.
    pub exit_ns: Nanos,
    /// The user stack that made the call.
    pub stack: StackId,
    /// For an acquisition: what was mapped, as the kernel names it.
    pub file: FileId,
}

/// One interned stack frame. Nodes are numbered from 1 in the order in which a log defines them;
/// `parent` is the caller's node, 0 at the thread's root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StackNode {
    /// The caller, or 0.
    pub parent: StackId,
    /// The module that the frame lies in.
    pub module: ModuleId,
    /// The frame's address: an ELF virtual address of the module (what `addr2line` wants), or an
    /// absolute one where there is no module. It is a return address, one past the call, unless
    /// [`StackNode::EXACT`] is set.
    pub offset: u64,
    /// Bits below.
    pub flags: u8,
}

impl StackNode {
    /// The address is that of the instruction itself (a signal interrupted it), not one past a call.
    pub const EXACT: u8 = 1;
    /// Found without unwind information (frame pointer or scan): plausible, not proved.
    pub const GUESSED: u8 = 2;
    /// On an outermost frame: the stack goes on, the unwinder could not.
    pub const TRUNCATED: u8 = 4;

    /// The address to look up in symbol tables: inside the instruction that made the call.
    #[must_use]
    pub fn lookup(&self) -> u64 {
        if self.flags & StackNode::EXACT != 0 {
            self.offset
        } else {
            self.offset.saturating_sub(1)
        }
    }
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Vma {
    /// Where.
    pub range: Range,
    /// `rwxp`.
    pub perms: Perms,
    /// Offset into the file, bytes; 0 for anonymous memory.
    pub offset: u64,
    /// Device, inode and name.
    pub file: FileId,
}

/// What stands behind mappings: the device, inode and name columns of maps. Also the kernel's own
/// names without a file (`[heap]`, `[stack]`, `[vdso]`, `[anon:...]`), with device and inode 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct FileInfo {
    /// Device, major and minor.
    pub dev: (u32, u32),
    /// Inode number.
    pub inode: u64,
    /// The name as maps prints it; bytes that are not UTF-8 are replaced by U+FFFD.
    pub path: String,
}

/// Where a module's bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ModuleKind {
    /// A file.
    File,
    /// The kernel's vdso.
    Vdso,
    /// Executable memory without a file behind it.
    Memory,
}

/// Something that frames lie in.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ModuleInfo {
    /// What it is.
    pub kind: ModuleKind,
    /// The file, as maps names it.
    pub file: FileId,
    /// GNU build id; empty if it has none.
    pub build_id: Vec<u8>,
}

/// How a space came to be.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Origin {
    /// exec of this path with these arguments.
    Exec {
        /// `/proc/PID/exe`.
        path: String,
        /// Argument vector.
        argv: Vec<String>,
    },
    /// A copy of another space.
    Fork {
        /// The space copied.
        parent: SpaceId,
    },
    /// It was there when the window opened.
    Attach,
}

/// Why a space's story ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SpaceEnd {
    /// Its last thread exited.
    Exit,
    /// Its last thread went on to another program.
    Exec,
    /// Its last thread was killed by a signal.
    Killed,
    /// The window closed.
    Window,
}

/// Why a checkpoint was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CheckpointReason {
    /// First sight of the space: the model starts from it.
    Start,
    /// In the course of the window.
    Periodic,
    /// The space's last thread is about to exit.
    SpaceEnd,
    /// The window closes.
    WindowEnd,
}

/// A call that had not come back at a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct InFlight {
    /// Who is in it.
    pub thread: ThreadIx,
    /// Its entry stamp.
    pub entry: Stamp,
}

/// The kernel's own list of a space's mappings, at an instant.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Checkpoint {
    /// Which space.
    pub space: SpaceId,
    /// Why now.
    pub reason: CheckpointReason,
    /// The mappings, ascending.
    pub vmas: Vec<Vma>,
    /// Calls of traced threads that had not come back; empty at a good checkpoint.
    pub in_flight: Vec<InFlight>,
    /// How long threads were held for it, nanoseconds.
    pub held_ns: u64,
}

/// Why the recorder looked at a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LookCause {
    /// A call mapped something that its arguments do not describe (shmat, io_setup, ...): what is
    /// seen in the range was born by that call.
    Acquired,
    /// A call failed and may have acted in part: what is seen there is what it left.
    PartialFailure,
    /// Calls raced, and this says how it ended.
    Race,
}

/// What the kernel showed in one range, right after a call that its arguments do not settle.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Look {
    /// Which space.
    pub space: SpaceId,
    /// Why.
    pub cause: LookCause,
    /// The exit stamp of the call in question.
    pub call: Stamp,
    /// Where it looked.
    pub range: Range,
    /// What is mapped there, clipped to `range`, ascending.
    pub vmas: Vec<Vma>,
}

/// Memory in RAM by the kernel's own counters (`/proc/PID/status`), in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RssSample {
    /// VmSize.
    pub size: u64,
    /// RssAnon.
    pub anon: u64,
    /// RssFile.
    pub file: u64,
    /// RssShmem.
    pub shmem: u64,
    /// VmSwap.
    pub swap: u64,
}

/// A run of pages that are in RAM (or swapped out).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PageRun {
    /// Pages between the end of the run before (0 for the first) and this one's start.
    pub gap: u64,
    /// Its length in pages.
    pub pages: u64,
}

/// Which pages of a space were in RAM, by pagemap.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Residency {
    /// Which space.
    pub space: SpaceId,
    /// Ranges that were looked at, ascending; nothing is known of others.
    pub looked_at: Vec<Range>,
    /// Resident pages.
    pub resident: Vec<PageRun>,
    /// Swapped-out pages.
    pub swapped: Vec<PageRun>,
}

/// Why the window closed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum WindowEnd {
    /// The program ended.
    ProgramEnded,
    /// `--for` ran out.
    Time,
    /// The recorder was asked to stop.
    Asked,
    /// The log could not be written any more.
    Output(String),
    /// The threads that were followed have ended; others of the program go on.
    ThreadsEnded,
    /// A limit that the user set, or one of the recorder's own, was reached: which, in words.
    Limit(String),
}

/// Why a thread's calls were not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NotTraced {
    /// It was not among those that were asked for.
    NotChosen,
    /// It could not be stopped without harm at first, or was found late.
    Late,
    /// It belongs to a process that shares the space and is not followed.
    OtherProcess,
}

/// A thread that used a space while nobody recorded its calls: evidence for changes of the space that
/// no event explains.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Untraced {
    /// Which space.
    pub space: SpaceId,
    /// Its tid.
    pub tid: Tid,
    /// `comm`.
    pub name: String,
    /// Why.
    pub why: NotTraced,
    /// Since when. Until the record's own time.
    pub since: Nanos,
    /// CPU time that it used meanwhile, nanoseconds; `None` if nobody could tell. A thread that used
    /// none made no call.
    pub ran_ns: Option<u64>,
}

/// What the recorder itself took of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Footprint {
    /// Most memory in RAM at once, bytes.
    pub peak_rss: u64,
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
}

/// Written when the window closes in order: its absence marks a cut log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Summary {
    /// Why it closed.
    pub end: WindowEnd,
    /// Events recorded.
    pub events: u64,
    /// Events seen and not recorded.
    pub lost: u64,
    /// Calls whose order was settled by looking at the kernel.
    pub settled: u64,
    /// Ptrace stops taken.
    pub stops: u64,
    /// Time that threads of the target spent in those stops, nanoseconds, summed over threads.
    pub stopped_ns: u64,
    /// What the mechanism could not see, in words; empty if nothing.
    pub uncovered: Vec<String>,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Body {
    /// A space begins. A [`Checkpoint`] of it follows.
    SpaceStart {
        /// Its id.
        space: SpaceId,
        /// The process that it was first seen in.
        pid: Pid,
        /// How it came to be.
        origin: Origin,
        /// Where its heap begins (`start_brk` of `/proc/PID/stat`).
        start_brk: Addr,
    },
    /// A space ends.
    SpaceEnd {
        /// Its id.
        space: SpaceId,
        /// How.
        how: SpaceEnd,
    },
    /// A thread is followed from here on. A thread that execs begins anew.
    ThreadStart {
        /// Its id in this log.
        thread: ThreadIx,
        /// Its tid.
        tid: Tid,
        /// Its process.
        pid: Pid,
        /// Its space.
        space: SpaceId,
        /// `comm`.
        name: String,
    },
    /// A thread is gone, or no longer followed.
    ThreadEnd {
        /// Its id in this log.
        thread: ThreadIx,
        /// The wait status, where the kernel gave one.
        status: Option<i32>,
        /// `comm` at the end, which often says more than at the start.
        name: String,
    },
    /// Defines a [`FileId`].
    File(FileId, FileInfo),
    /// Defines a [`ModuleId`].
    Module(ModuleId, ModuleInfo),
    /// A module is mapped in a space: address = module offset + `bias` (wrapping).
    ModuleBase {
        /// Where.
        space: SpaceId,
        /// What.
        module: ModuleId,
        /// Added to a module offset it gives the address.
        bias: u64,
    },
    /// The kernel's maps.
    Checkpoint(Checkpoint),
    /// The kernel's maps in one range.
    Look(Look),
    /// RAM by the kernel's counters.
    Rss(SpaceId, RssSample),
    /// RAM page by page.
    Residency(Residency),
    /// Events were seen and not recorded.
    Lost {
        /// How many.
        events: u64,
        /// Why.
        why: String,
    },
    /// Something that a reader of the log should know.
    Note(String),
    /// The window closed.
    Summary(Summary),
    /// Changes of a space that were not recorded, as far as is known.
    Untraced(Untraced),
    /// What the recorder took. Written once, before the summary.
    Footprint(Footprint),
}

/// A record: what, and when. Takes its place among the events by its stamp.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// Position in the order of stops. Records never share a stamp with an effect; two records of
    /// equal stamp stand in the order in which they were written.
    pub stamp: Stamp,
    /// Time.
    pub ns: Nanos,
    /// What.
    pub body: Body,
}

/// Where a name came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum NameSource {
    /// Debug information or a full symbol table.
    Symbols,
    /// The last symbol before the place, which does not say that it reaches so far: perhaps another function's.
    Dynamic,
    /// What a just-in-time compiler said of its code in this space, and in no other: the module is 0.
    Jit(SpaceId),
}

/// One source-level frame.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NamedFrame {
    /// Function, demangled.
    pub function: String,
    /// Source file.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
}

/// The names of one place in a module. Several frames where functions were inlined, innermost first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Name {
    /// Module.
    pub module: ModuleId,
    /// [`StackNode::lookup`] of the frames it names.
    pub lookup: u64,
    /// Where the names came from.
    pub source: NameSource,
    /// The frames; empty if nothing is known.
    pub frames: Vec<NamedFrame>,
}
