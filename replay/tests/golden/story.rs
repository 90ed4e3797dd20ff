//! A small log with one of everything, written as the recorder would: a thread of a hostile name, a
//! stack that leaks, one that churns, a mapping that moves, a heap, samples of RAM.

use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::record::{
    Body, CallEvent, Checkpoint, CheckpointReason, FileInfo, Header, Mechanism, ModuleInfo,
    ModuleKind, Name, NameSource, NamedFrame, Origin, Outcome, PageRun, Record, Residency,
    RssSample, SpaceEnd, StackNode, Summary, Vma, WindowEnd,
};
use maptrail_tracelog::types::{
    Addr, FileId, ModuleId, Nanos, PAGE, Perms, Pid, Range, SpaceId, StackId, Stamp, ThreadIx, Tid,
};
use maptrail_tracelog::writer::{Chunk, LogWriter};

/// Where the mapping that moves ends up.
pub const MOVED_TO: Addr = Addr(0x7f00_8000_0000);
/// Calls in the log.
pub const EVENTS: usize = 60 * 3 + 6;

pub const SECOND: u64 = 1_000_000_000;
pub const SPACE: SpaceId = SpaceId(0);
pub const THREAD: ThreadIx = ThreadIx(0);
const APP: ModuleId = ModuleId(1);
const LIBC: ModuleId = ModuleId(2);
const LEAKED: u64 = 0x7f00_0000_0000;
const CHURNED: u64 = 0x7f00_4000_0000;
const MOVED_FROM: u64 = 0x7f00_6000_0000;
const HEAP: u64 = 0x5555_0010_0000;
pub const MIB: u64 = 1 << 20;

// Stacks, by the node of their innermost frame.
pub const LEAK: StackId = StackId(4);
pub const CHURN: StackId = StackId(6);
const ODD: StackId = StackId(8);

/// The log.
pub fn log() -> Vec<u8> {
    write(chunk(true))
}

/// The same, whose last checkpoint has a mapping too few and one too many.
pub fn drifted() -> Vec<u8> {
    write(chunk(false))
}

/// Writes a log of one chunk.
pub fn write(chunk: Chunk) -> Vec<u8> {
    let header = Header {
        writer: "0.0.0".into(),
        host: "bench".into(),
        kernel: "6.1.0 #1 SMP".into(),
        command: vec!["./worker".into(), "--name=a\x1b[31mb".into()],
        mechanism: Mechanism::Seccomp,
        wall_start_ns: 1_700_000_000 * SECOND,
        monotonic_start_ns: 5 * SECOND,
        page_size: 4096,
    };
    let mut writer = LogWriter::create(Vec::new(), &header).expect("memory takes everything");
    writer.write_chunk(&chunk).expect("a chunk");
    writer.write_names(&names()).expect("names");
    writer.finish().expect("an end");
    writer.into_inner()
}

/// Stamps and times: every stop takes the next one.
#[derive(Default)]
pub struct Clock {
    stamp: u64,
}

pub struct Teller {
    clock: Clock,
    chunk: Chunk,
}

impl Teller {
    fn stamp(&mut self) -> Stamp {
        self.clock.stamp += 1;
        Stamp(self.clock.stamp)
    }

    pub fn record(&mut self, ns: u64, body: Body) {
        let stamp = self.stamp();
        self.chunk.records.push(Record {
            stamp,
            ns: Nanos(ns),
            body,
        });
    }

    pub fn call(&mut self, ns: u64, call: Call, args: &[u64], result: i64, stack: StackId) {
        let mut six = [0; 6];
        for (to, from) in six.iter_mut().zip(args) {
            *to = *from;
        }
        let (entry, exit) = (self.stamp(), self.stamp());
        self.chunk.events.push(CallEvent {
            thread: THREAD,
            space: SPACE,
            call,
            abi: Abi::X86_64,
            args: six,
            outcome: Outcome::Returned(result),
            entry,
            exit,
            entry_ns: Nanos(ns),
            exit_ns: Nanos(ns + 1000),
            stack,
            file: FileId::ANON,
        });
    }

    pub fn map(&mut self, ns: u64, at: u64, len: u64, stack: StackId) {
        let args = [0, len, 3, 0x22, u64::MAX, 0];
        self.call(ns, Call::Mmap, &args, at as i64, stack);
    }
}

impl Teller {
    /// At the beginning of a log, with its stacks, files and modules.
    pub fn new() -> Teller {
        let mut t = Teller {
            clock: Clock::default(),
            chunk: Chunk::default(),
        };
        nodes(&mut t.chunk);
        modules(&mut t);
        t
    }

    /// All that was told.
    pub fn chunk(mut self) -> Chunk {
        self.chunk.low_water = Stamp(self.clock.stamp + 1);
        self.chunk
    }
}

fn chunk(good: bool) -> Chunk {
    let mut t = Teller::new();
    begin(&mut t);
    t.call(SECOND / 2, Call::Brk, &[0], HEAP as i64, ODD);
    t.call(
        SECOND / 2 + 5000,
        Call::Brk,
        &[HEAP + MIB],
        (HEAP + MIB) as i64,
        ODD,
    );
    t.map(SECOND / 2 + 10_000, MOVED_FROM, 4 * PAGE, ODD);
    for i in 0..60 {
        let ns = i * SECOND + 600_000_000;
        t.map(ns, LEAKED + i * MIB, MIB, LEAK);
        t.map(ns + 10_000, CHURNED, 16 * PAGE, CHURN);
        t.call(ns + 20_000, Call::Munmap, &[CHURNED, 16 * PAGE], 0, CHURN);
        if i == 10 {
            let args = [MOVED_FROM, 4 * PAGE, 8 * PAGE, 3, MOVED_TO.0];
            t.call(ns + 30_000, Call::Mremap, &args, MOVED_TO.0 as i64, ODD);
        }
        if i == 30 {
            t.call(ns + 30_000, Call::Mprotect, &[MOVED_TO.0, PAGE, 0], 0, ODD);
            t.call(ns + 40_000, Call::Munmap, &[MOVED_TO.0 + 1, PAGE], -22, ODD);
        }
        if i % 10 == 0 {
            let rss = RssSample {
                size: 0,
                anon: (i + 1) * MIB,
                file: MIB,
                shmem: 0,
                swap: 0,
            };
            t.record(ns + 50_000, Body::Rss(SPACE, rss));
        }
    }
    end(&mut t, good);
    t.chunk()
}

fn nodes(chunk: &mut Chunk) {
    let node = |parent, module, offset, flags| StackNode {
        parent: StackId(parent),
        module,
        offset,
        flags,
    };
    chunk.nodes = vec![
        node(0, APP, 0x1100, StackNode::TRUNCATED),
        node(1, APP, 0x1200, 0),
        node(2, APP, 0x1300, 0),
        node(3, LIBC, 0x9000, 0),
        node(1, APP, 0x1400, StackNode::GUESSED),
        node(5, LIBC, 0x9000, 0),
        node(1, LIBC, 0xa000, 0),
        node(7, LIBC, 0x9100, 0),
    ];
}

fn names() -> Vec<Name> {
    let name = |module, lookup, source, frames: &[(&str, Option<(&str, u32)>)]| Name {
        module,
        lookup,
        source,
        frames: frames
            .iter()
            .map(|(function, place)| NamedFrame {
                function: (*function).into(),
                file: place.map(|(file, _)| file.into()),
                line: place.map(|(_, line)| line),
            })
            .collect(),
    };
    use NameSource::{Dynamic, Symbols};
    vec![
        name(APP, 0x10ff, Symbols, &[("main", Some(("/src/main.c", 7)))]),
        name(APP, 0x11ff, Symbols, &[("decode\x1b]0;owned\x07", None)]),
        name(
            APP,
            0x12ff,
            Symbols,
            &[
                ("grow", Some(("/src/pool.h", 40))),
                ("pool::get(unsigned long)", Some(("/src/pool.cc", 90))),
            ],
        ),
        name(APP, 0x13ff, Dynamic, &[("exported", None)]),
        name(LIBC, 0x8fff, Symbols, &[("mmap", None)]),
        name(LIBC, 0x90ff, Symbols, &[("sbrk", None)]),
    ]
}

fn file(t: &mut Teller, id: u32, inode: u64, path: &str) {
    let info = FileInfo {
        dev: if inode == 0 { (0, 0) } else { (8, 1) },
        inode,
        path: path.into(),
    };
    t.record(0, Body::File(FileId(id), info));
}

fn modules(t: &mut Teller) {
    file(t, 1, 11, "/opt/wor\nker");
    file(t, 2, 12, "/usr/lib/libc.so.6");
    file(t, 3, 0, "[stack]");
    for (id, file) in [(APP, 1), (LIBC, 2)] {
        let info = ModuleInfo {
            kind: ModuleKind::File,
            file: FileId(file),
            build_id: vec![id.0 as u8; 20],
        };
        t.record(0, Body::Module(id, info));
    }
}

fn begin(t: &mut Teller) {
    let origin = Origin::Exec {
        path: "/opt/worker".into(),
        argv: vec!["./worker".into()],
    };
    let start = Body::SpaceStart {
        space: SPACE,
        pid: Pid(100),
        origin,
        start_brk: Addr(HEAP),
    };
    t.record(0, start);
    let thread = Body::ThreadStart {
        thread: THREAD,
        tid: Tid(100),
        pid: Pid(100),
        space: SPACE,
        name: "work\x1b[31m".into(),
    };
    t.record(0, thread);
    checkpoint(t, 1000, CheckpointReason::Start, image());
}

/// What is mapped from the start.
pub fn image() -> Vec<Vma> {
    vec![
        vma(0x5555_0000_0000, 0x5555_0000_4000, "r-xp", 1),
        vma(0x7f11_0000_0000, 0x7f11_0010_0000, "r-xp", 2),
        vma(0x7fff_0000_0000, 0x7fff_0002_1000, "rw-p", 3),
    ]
}

pub fn vma(start: u64, end: u64, perms: &str, file: u32) -> Vma {
    Vma {
        range: Range {
            start: Addr(start),
            end: Addr(end),
        },
        perms: Perms::parse(perms.as_bytes()).expect("permissions"),
        offset: 0,
        file: FileId(file),
    }
}

pub fn checkpoint(t: &mut Teller, ns: u64, reason: CheckpointReason, vmas: Vec<Vma>) {
    let checkpoint = Checkpoint {
        space: SPACE,
        reason,
        vmas,
        in_flight: Vec::new(),
        held_ns: 30_000,
    };
    t.record(ns, Body::Checkpoint(checkpoint));
}

fn end(t: &mut Teller, good: bool) {
    let ns = 60 * SECOND;
    let resident = Residency {
        space: SPACE,
        looked_at: vec![Range {
            start: Addr(LEAKED),
            end: Addr(LEAKED + 60 * MIB),
        }],
        resident: vec![PageRun {
            gap: LEAKED / PAGE,
            pages: 59 * MIB / PAGE,
        }],
        swapped: Vec::new(),
    };
    t.record(ns, Body::Residency(resident));
    let moved = MOVED_TO.0;
    let mut vmas = vec![
        vma(HEAP, HEAP + MIB, "rw-p", 0),
        vma(LEAKED, LEAKED + 60 * MIB, "rw-p", 0),
        vma(moved, moved + PAGE, "---p", 0),
        vma(moved + PAGE, moved + 8 * PAGE, "rw-p", 0),
    ];
    if !good {
        vmas.truncate(3);
        vmas.push(vma(0x7f10_0000_0000, 0x7f10_0000_2000, "rw-s", 1));
    }
    vmas.extend(image());
    vmas.sort_by_key(|v| v.range.start);
    checkpoint(t, ns, CheckpointReason::WindowEnd, vmas);
    let how = SpaceEnd::Window;
    t.record(ns, Body::SpaceEnd { space: SPACE, how });
    t.record(ns, Body::Note("a remark\x07".into()));
    let summary = Summary {
        end: WindowEnd::Time,
        events: EVENTS as u64,
        lost: 0,
        settled: 1,
        stops: 2 * EVENTS as u64,
        stopped_ns: 5_000_000,
        uncovered: vec!["thread 7 was not traced".into()],
    };
    t.record(ns, Body::Summary(summary));
}
