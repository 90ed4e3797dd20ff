//! Measures the log: bytes an event, and nanoseconds to write and to read one.
//!
//! `cargo run --release -p maptrail-tracelog --example codec_speed [EVENTS]`
//!
//! The events are those of programs that map 64 KiB, touch it and unmap it, with times as uneven as
//! real ones: one thread whose addresses repeat, one whose addresses wander, and eight at once. The
//! log goes to memory, so no disk is measured.

use std::io::Cursor;
use std::time::{Duration, Instant};

use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{CallEvent, Header, Mechanism, Outcome};
use maptrail_tracelog::types::{FileId, Nanos, SpaceId, StackId, Stamp, ThreadIx};
use maptrail_tracelog::writer::{Chunk, LogWriter};

/// Events in a chunk, about as many as a recorder collects before it writes.
const CHUNK: usize = 1 << 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let events = match std::env::args().nth(1) {
        Some(n) => n.parse()?,
        None => 1_000_000,
    };
    println!("{events} events in chunks of {CHUNK}");
    println!(
        "{:<28} {:>8} {:>10} {:>10}",
        "", "bytes", "write ns", "read ns"
    );
    for (what, threads, wander) in [
        ("1 thread, one address", 1, false),
        ("1 thread, wandering", 1, true),
        ("8 threads, one address each", 8, false),
        ("8 threads, wandering", 8, true),
    ] {
        let all = synthetic(events, threads, wander);
        let (log, write) = write(&all)?;
        let read = read(&log, &all)?;
        let per_event = |t: Duration| t.as_nanos() as f64 / events as f64;
        println!(
            "{what:<28} {:>8.2} {:>10.1} {:>10.1}",
            log.len() as f64 / events as f64,
            per_event(write),
            per_event(read),
        );
    }
    Ok(())
}

fn write(all: &[CallEvent]) -> Result<(Vec<u8>, Duration), std::io::Error> {
    let header = Header {
        writer: String::new(),
        host: String::new(),
        kernel: String::new(),
        command: Vec::new(),
        mechanism: Mechanism::Seccomp,
        wall_start_ns: 0,
        monotonic_start_ns: 0,
        page_size: 4096,
    };
    let mut log = LogWriter::create(Vec::with_capacity(all.len() * 20), &header)?;
    let mut chunk = Chunk::default();
    let mut spent = Duration::ZERO;
    for events in all.chunks(CHUNK) {
        chunk.clear();
        chunk.events.extend_from_slice(events);
        let start = Instant::now();
        log.write_chunk(&chunk)?;
        spent += start.elapsed();
    }
    log.finish()?;
    Ok((log.into_inner(), spent))
}

fn read(log: &[u8], all: &[CallEvent]) -> Result<Duration, Box<dyn std::error::Error>> {
    let mut reader = LogReader::open(Cursor::new(log))?;
    let mut chunk = Chunk::default();
    let mut spent = Duration::ZERO;
    let mut expected = all.chunks(CHUNK);
    loop {
        let start = Instant::now();
        let more = reader.next_chunk(&mut chunk)?;
        spent += start.elapsed();
        if !more {
            break;
        }
        assert_eq!(
            Some(&chunk.events[..]),
            expected.next(),
            "the log says something else"
        );
    }
    assert_eq!(expected.next(), None, "the log ends early");
    Ok(spent)
}

/// A small generator (xorshift): the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A time of at least `base` ns, on average `base + spread`, now and then ten times that.
    fn time(&mut self, base: u64, spread: u64) -> u64 {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let time = base + (-(1.0 - uniform).ln() * spread as f64) as u64;
        if self.next().is_multiple_of(500) {
            time * 10
        } else {
            time
        }
    }
}

/// What one thread is about to do, and when.
struct Thread {
    now: u64,
    /// Entry time and stamp of the call that it is in.
    entered: Option<(u64, u64)>,
    mapped: Option<u64>,
}

fn synthetic(count: usize, threads: usize, wander: bool) -> Vec<CallEvent> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut all: Vec<Thread> = (0..threads as u64)
        .map(|i| Thread {
            now: 1000 * i,
            entered: None,
            mapped: None,
        })
        .collect();
    let mut stamp = 0;
    let mut events = Vec::with_capacity(count);
    while events.len() < count {
        let Some((index, thread)) = all.iter_mut().enumerate().min_by_key(|(_, t)| t.now) else {
            break;
        };
        stamp += 1;
        let Some((entry_ns, entry)) = thread.entered else {
            thread.entered = Some((thread.now, stamp));
            thread.now += random.time(9000, 900);
            continue;
        };
        let slot = if wander { random.next() % 4096 } else { 0 };
        let (call, args, result, stack) = match thread.mapped.take() {
            Some(addr) => (Call::Munmap, [addr, 65536, 0, 0, 0, 0], 0, 8),
            None => {
                let addr = 0x7f00_0000_0000 + ((index as u64) << 32) + slot * 65536;
                thread.mapped = Some(addr);
                (Call::Mmap, [0, 65536, 3, 0x22, u64::MAX, 0], addr, 7)
            }
        };
        events.push(CallEvent {
            thread: ThreadIx(index as u32),
            space: SpaceId(0),
            call,
            abi: Abi::X86_64,
            args,
            outcome: Outcome::Returned(result as i64),
            entry: Stamp(entry),
            exit: Stamp(stamp),
            entry_ns: Nanos(entry_ns),
            exit_ns: Nanos(thread.now),
            stack: StackId(stack),
            file: FileId(0),
        });
        thread.entered = None;
        thread.now += random.time(3000, 1200);
    }
    events
}
