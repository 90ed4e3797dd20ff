//! Measures `leaks` from end to end: events a second on one core, decoding included.
//!
//! ```text
//! cargo build --release -p maptrail-replay --example leaks_speed
//! target/release/examples/leaks_speed make 10000000 /tmp/ten.maptrail
//! /usr/bin/time -v target/release/examples/leaks_speed /tmp/ten.maptrail
//! ```
//!
//! The log is of eight threads whose calls overlap, on two thousand stacks. Each maps 64 KiB, now and
//! then makes part of it read-only, and unmaps it again after up to sixteen other mappings of its own;
//! a thousand mappings in all are never given back, however long the log is. So the memory that the
//! second command needs should not depend on the number of events.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::time::Instant;

use maptrail_replay::leaks::{Options, leaks};
use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{
    Body, CallEvent, Checkpoint, CheckpointReason, Header, Mechanism, Origin, Outcome, Record,
    StackNode,
};
use maptrail_tracelog::types::{
    Addr, FileId, ModuleId, Nanos, Pid, SpaceId, StackId, Stamp, ThreadIx,
};
use maptrail_tracelog::writer::{Chunk, LogWriter};

const CHUNK: usize = 1 << 15;
const THREADS: u32 = 8;
const STACKS: u32 = 2000;
const LEN: u64 = 64 << 10;
/// Mappings that a thread keeps for a while.
const KEPT: usize = 16;
const LEAKED: u64 = 1000;
const ARENA: u64 = 0x7f00_0000_0000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", events, path] => make(events.parse()?, path),
        [path] => measure(path),
        _ => Err("usage: leaks_speed make EVENTS LOG | leaks_speed LOG".into()),
    }
}

fn measure(path: &str) -> Result<(), Box<dyn Error>> {
    let mut log = LogReader::open(BufReader::new(File::open(path)?))?;
    let start = Instant::now();
    let mut chunk = Chunk::default();
    let mut events = 0;
    while log.next_chunk(&mut chunk)? {
        events += chunk.events.len();
    }
    let read = start.elapsed();
    let start = Instant::now();
    let (answer, world) = leaks(&mut log, Options::default())?;
    let all = start.elapsed();
    let each = |t: std::time::Duration| t.as_nanos() as f64 / events as f64;
    println!(
        "{events} events: {:.2} million a second ({:.0} ns each, of which {:.0} ns to read)",
        events as f64 / all.as_secs_f64() / 1e6,
        each(all),
        each(read),
    );
    println!(
        "{} stacks, {} births alive at the end, {} leaks of {} bytes",
        answer.rows.len(),
        world.births.len(),
        answer.leak_rows,
        answer.leaked_bytes
    );
    Ok(())
}

/// A thread of the synthetic program.
struct Worker {
    kept: VecDeque<u64>,
    /// Places of its own that are free.
    free: Vec<u64>,
    next_new: u64,
}

struct Maker {
    events: u64,
    made: u64,
    stamp: u64,
    random: u64,
    workers: Vec<Worker>,
    leak_every: u64,
}

impl Maker {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn stamp(&mut self) -> (Stamp, Nanos) {
        self.stamp += 1;
        (Stamp(self.stamp), Nanos(self.stamp * 1000))
    }

    /// One call by each thread, all of them overlapping.
    fn round(&mut self, out: &mut Vec<CallEvent>) {
        let mut begun: Vec<CallEvent> = (0..THREADS).map(|thread| self.begin(thread)).collect();
        for event in &mut begun {
            (event.exit, event.exit_ns) = self.stamp();
        }
        self.made += begun.len() as u64;
        out.append(&mut begun);
    }

    fn begin(&mut self, thread: u32) -> CallEvent {
        let (entry, entry_ns) = self.stamp();
        let random = self.random();
        let is_leak = (self.made / u64::from(THREADS)).is_multiple_of(self.leak_every)
            && thread == (self.made / self.leak_every) as u32 % THREADS;
        let mut stack = StackId(1 + (random % u64::from(STACKS - 1)) as u32);
        let worker = &mut self.workers[thread as usize];
        let mut place = || {
            worker.free.pop().unwrap_or_else(|| {
                worker.next_new += 2 * LEN;
                worker.next_new
            })
        };
        let (call, args, result) = if is_leak {
            stack = StackId(STACKS);
            (Call::Mmap, [0, LEN, 3, 0x22, u64::MAX, 0], place())
        } else if worker.kept.len() < KEPT && (random >> 32).is_multiple_of(2) {
            let at = place();
            worker.kept.push_back(at);
            (Call::Mmap, [0, LEN, 3, 0x22, u64::MAX, 0], at)
        } else if let Some(at) = worker
            .kept
            .back()
            .filter(|_| (random >> 40).is_multiple_of(16))
        {
            (Call::Mprotect, [*at, LEN / 4, 1, 0, 0, 0], 0)
        } else if let Some(at) = worker.kept.pop_front() {
            worker.free.push(at);
            (Call::Munmap, [at, LEN, 0, 0, 0, 0], 0)
        } else {
            (Call::Brk, [0; 6], 0x5555_0000_0000)
        };
        CallEvent {
            thread: ThreadIx(thread),
            space: SpaceId(0),
            call,
            abi: Abi::X86_64,
            args,
            outcome: Outcome::Returned(result as i64),
            entry,
            exit: entry,
            entry_ns,
            exit_ns: entry_ns,
            stack,
            file: FileId::ANON,
        }
    }
}

fn make(events: u64, path: &str) -> Result<(), Box<dyn Error>> {
    let header = Header {
        writer: "leaks_speed".into(),
        host: String::new(),
        kernel: String::new(),
        command: vec!["synthetic".into()],
        mechanism: Mechanism::Seccomp,
        wall_start_ns: 0,
        monotonic_start_ns: 0,
        page_size: 4096,
    };
    let mut log = LogWriter::create(BufWriter::new(File::create(path)?), &header)?;
    log.write_chunk(&start())?;
    let worker = |thread: u64| Worker {
        kept: VecDeque::new(),
        free: Vec::new(),
        next_new: ARENA + (thread << 36),
    };
    let mut maker = Maker {
        events,
        made: 0,
        stamp: 10,
        random: 0x9e37_79b9_7f4a_7c15,
        workers: (0..u64::from(THREADS)).map(worker).collect(),
        leak_every: (events / u64::from(THREADS) / LEAKED).max(1),
    };
    let mut chunk = Chunk::default();
    while maker.made < maker.events {
        chunk.clear();
        while chunk.events.len() < CHUNK && maker.made < maker.events {
            maker.round(&mut chunk.events);
        }
        chunk.first_ns = chunk.events.first().map_or(Nanos(0), |e| e.exit_ns);
        chunk.low_water = Stamp(maker.stamp + 1);
        log.write_chunk(&chunk)?;
    }
    log.finish()?;
    println!("{} events, {} bytes", maker.made, log.bytes_written());
    Ok(())
}

/// The space, and the stacks: chains of thirty frames.
fn start() -> Chunk {
    let record = |stamp, body| Record {
        stamp: Stamp(stamp),
        ns: Nanos(0),
        body,
    };
    let node = |id: u32| StackNode {
        parent: StackId(if id.is_multiple_of(30) { 0 } else { id }),
        module: ModuleId(0),
        offset: 0x1000 + u64::from(id),
        flags: 0,
    };
    Chunk {
        low_water: Stamp(3),
        nodes: (0..STACKS).map(node).collect(),
        records: vec![
            record(
                1,
                Body::SpaceStart {
                    space: SpaceId(0),
                    pid: Pid(1),
                    origin: Origin::Attach,
                    start_brk: Addr(0x5555_0000_0000),
                },
            ),
            record(
                2,
                Body::Checkpoint(Checkpoint {
                    space: SpaceId(0),
                    reason: CheckpointReason::Start,
                    vmas: vec![],
                    in_flight: vec![],
                    held_ns: 0,
                }),
            ),
        ],
        ..Chunk::default()
    }
}
