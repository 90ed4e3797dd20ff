//! Writes logs by hand, call by call, as a recorder would: stamps and times are given out here.

use maptrail_replay::timeline::ChunkList;
use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::record::{
    Body, CallEvent, Checkpoint, CheckpointReason, FileInfo, InFlight, Look, LookCause, NotTraced,
    Origin, Outcome, Record, SpaceEnd, StackNode, Untraced, Vma,
};
use maptrail_tracelog::types::{
    Addr, FileId, Nanos, PAGE, Perms, Pid, Range, SpaceId, StackId, Stamp, ThreadIx, Tid,
};
use maptrail_tracelog::writer::Chunk;

pub const MAP_SHARED: u64 = 1;
pub const MAP_PRIVATE: u64 = 2;
pub const MAP_FIXED: u64 = 0x10;
pub const MAP_ANONYMOUS: u64 = 0x20;
pub const MAP_GROWSDOWN: u64 = 0x100;
pub const MREMAP_MAYMOVE: u64 = 1;
pub const MREMAP_FIXED: u64 = 2;
pub const MREMAP_DONTUNMAP: u64 = 4;
pub const RW: u64 = 3;
pub const ENOMEM: i64 = 12;

/// The space that logs begin with, unless they say otherwise.
pub const MAIN: SpaceId = SpaceId(0);
/// Its first thread.
pub const T0: ThreadIx = ThreadIx(0);
pub const T1: ThreadIx = ThreadIx(1);
/// Where its heap begins.
pub const START_BRK: u64 = 0x5000_0000;

pub fn range(start: u64, pages: u64) -> Range {
    Range {
        start: Addr(start),
        end: Addr(start + pages * PAGE),
    }
}

pub fn vma(range: Range, perms: &str) -> Vma {
    Vma {
        range,
        perms: Perms::parse(perms.as_bytes()).expect("four characters of a maps line"),
        offset: 0,
        file: FileId::ANON,
    }
}

/// A call that has begun.
#[derive(Clone, Copy)]
pub struct Begun {
    pub event: CallEvent,
}

/// A log in the making.
pub struct Log {
    chunk: Chunk,
    stamp: u64,
    now: Nanos,
    /// Added to the time at every stamp.
    pub tick_ns: u64,
    pub stack: StackId,
    pub space: SpaceId,
}

impl Log {
    /// With nothing in it.
    pub fn empty() -> Log {
        Log {
            chunk: Chunk::default(),
            stamp: 0,
            now: Nanos(0),
            tick_ns: 1000,
            stack: StackId(1),
            space: MAIN,
        }
    }

    /// With one space that has these mappings and two threads.
    pub fn new(vmas: &[Vma]) -> Log {
        let mut log = Log::empty();
        log.exec(MAIN, vmas);
        for thread in [T0, T1] {
            log.record(Body::ThreadStart {
                thread,
                tid: Tid(100 + thread.0),
                pid: Pid(100),
                space: MAIN,
                name: "worker".into(),
            });
        }
        log
    }

    fn next(&mut self) -> (Stamp, Nanos) {
        self.stamp += 1;
        self.now.0 += self.tick_ns;
        (Stamp(self.stamp), self.now)
    }

    /// Lets time pass until `at`.
    pub fn wait_until(&mut self, at: Nanos) {
        self.now = self.now.max(at);
    }

    pub fn now(&self) -> Nanos {
        self.now
    }

    pub fn record(&mut self, body: Body) -> Stamp {
        let (stamp, ns) = self.next();
        self.chunk.records.push(Record { stamp, ns, body });
        stamp
    }

    pub fn file(&mut self, id: FileId, inode: u64, path: &str) {
        let info = FileInfo {
            dev: (u32::from(inode != 0) * 8, 0),
            inode,
            path: path.into(),
        };
        self.record(Body::File(id, info));
    }

    /// The stacks, from id 1.
    pub fn nodes(&mut self, nodes: Vec<StackNode>) {
        self.chunk.nodes = nodes;
    }

    pub fn exec(&mut self, space: SpaceId, vmas: &[Vma]) {
        let origin = Origin::Exec {
            path: "/victim".into(),
            argv: vec![],
        };
        self.start(space, origin, vmas);
    }

    pub fn start(&mut self, space: SpaceId, origin: Origin, vmas: &[Vma]) {
        self.record(Body::SpaceStart {
            space,
            pid: Pid(100 + space.0),
            origin,
            start_brk: Addr(START_BRK),
        });
        self.checkpoint_as(space, CheckpointReason::Start, vmas, vec![]);
    }

    pub fn end(&mut self, space: SpaceId) {
        self.record(Body::SpaceEnd {
            space,
            how: SpaceEnd::Exit,
        });
    }

    pub fn checkpoint(&mut self, vmas: &[Vma]) {
        self.checkpoint_as(self.space, CheckpointReason::Periodic, vmas, vec![]);
    }

    pub fn checkpoint_as(
        &mut self,
        space: SpaceId,
        reason: CheckpointReason,
        vmas: &[Vma],
        in_flight: Vec<InFlight>,
    ) {
        self.record(Body::Checkpoint(Checkpoint {
            space,
            reason,
            vmas: vmas.to_vec(),
            in_flight,
            held_ns: 0,
        }));
    }

    pub fn look(&mut self, cause: LookCause, call: Stamp, range: Range, vmas: &[Vma]) {
        self.record(Body::Look(Look {
            space: self.space,
            cause,
            call,
            range,
            vmas: vmas.to_vec(),
        }));
    }

    pub fn begin(&mut self, thread: ThreadIx, call: Call, args: &[u64]) -> Begun {
        let (entry, entry_ns) = self.next();
        let mut six = [0; 6];
        six[..args.len()].copy_from_slice(args);
        Begun {
            event: CallEvent {
                thread,
                space: self.space,
                call,
                abi: Abi::X86_64,
                args: six,
                outcome: Outcome::Unfinished,
                entry,
                exit: entry,
                entry_ns,
                exit_ns: entry_ns,
                stack: self.stack,
                file: FileId::ANON,
            },
        }
    }

    /// The call comes back; returns its exit stamp.
    pub fn finish(&mut self, begun: Begun, outcome: Outcome) -> Stamp {
        let (exit, exit_ns) = self.next();
        self.chunk.events.push(CallEvent {
            exit,
            exit_ns,
            outcome,
            ..begun.event
        });
        exit
    }

    pub fn call_of(&mut self, thread: ThreadIx, call: Call, args: &[u64], result: i64) -> Stamp {
        let begun = self.begin(thread, call, args);
        self.finish(begun, Outcome::Returned(result))
    }

    /// A call by the first thread.
    pub fn call(&mut self, call: Call, args: &[u64], result: u64) -> Stamp {
        self.call_of(T0, call, args, result as i64)
    }

    /// Maps private anonymous memory at `at`.
    pub fn mmap(&mut self, at: u64, pages: u64) -> Stamp {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        self.call(Call::Mmap, &[0, pages * PAGE, RW, flags, u64::MAX, 0], at)
    }

    /// Maps a file.
    pub fn mmap_file(&mut self, args: &[u64; 6], result: u64, file: FileId) -> Stamp {
        let mut begun = self.begin(T0, Call::Mmap, args);
        begun.event.file = file;
        self.finish(begun, Outcome::Returned(result as i64))
    }

    pub fn munmap(&mut self, at: u64, pages: u64) -> Stamp {
        self.call(Call::Munmap, &[at, pages * PAGE], 0)
    }

    /// A thread of the space ran untraced from `since` until now.
    pub fn untraced(&mut self, tid: Tid, since: Nanos, ran_ns: Option<u64>) {
        self.record(Body::Untraced(Untraced {
            space: self.space,
            tid,
            name: "hidden".into(),
            why: NotTraced::Late,
            since,
            ran_ns,
        }));
    }

    /// A thread of the space is followed from here on.
    pub fn take_up(&mut self, thread: ThreadIx, tid: Tid) {
        self.record(Body::ThreadStart {
            thread,
            tid,
            pid: Pid(100),
            space: self.space,
            name: "hidden".into(),
        });
    }

    /// How many calls there are.
    pub fn calls(&self) -> usize {
        self.chunk.events.len()
    }

    /// Leaves out all calls but the first `calls`.
    pub fn forget_from(&mut self, calls: usize) {
        self.chunk.events.truncate(calls);
    }

    /// Leaves out the event whose exit stamp this is.
    pub fn forget(&mut self, exit: Stamp) {
        self.chunk.events.retain(|event| event.exit != exit);
    }

    /// The log as one chunk.
    pub fn source(&self) -> ChunkList {
        let mut chunk = self.chunk.clone();
        chunk.low_water = Stamp(self.stamp + 1);
        ChunkList::new(vec![chunk])
    }

    /// The log cut into chunks of at most `events` events, with low-water marks as a recorder that
    /// writes a call when it ends would give.
    pub fn source_in_chunks(&self, events: usize) -> ChunkList {
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut records = self.chunk.records.iter().peekable();
        let all = &self.chunk.events;
        for (at, part) in all.chunks(events).enumerate() {
            let last = part.last().expect("a part has events").exit;
            let later = &all[((at + 1) * events).min(all.len())..];
            let mut chunk = Chunk {
                events: part.to_vec(),
                low_water: later.iter().map(|e| e.entry).fold(last, Stamp::min),
                ..Chunk::default()
            };
            while let Some(record) = records.next_if(|r| r.stamp <= last) {
                chunk.records.push(record.clone());
            }
            chunks.push(chunk);
        }
        chunks.push(Chunk {
            records: records.cloned().collect(),
            low_water: Stamp(self.stamp + 1),
            ..Chunk::default()
        });
        ChunkList::new(chunks)
    }
}
