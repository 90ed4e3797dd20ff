//! Names places without a file by arbitrary bytes, taken as a perf map: nothing must panic or use memory
//! out of proportion, and the log must stay one.
//!
//! `cargo +nightly fuzz run name_jit -- -rss_limit_mb=512 -max_len=16384` in `replay/`, or with the stable
//! compiler and `RUSTC_BOOTSTRAP=1`.
#![no_main]

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread_local;

use libfuzzer_sys::fuzz_target;
use maptrail_replay::symbols::name_jit_code;
use maptrail_tracelog::calls::{Abi, Call};
use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{CallEvent, Header, Mechanism, Outcome, StackNode};
use maptrail_tracelog::types::{FileId, ModuleId, Nanos, SpaceId, StackId, Stamp, ThreadIx};
use maptrail_tracelog::writer::{Chunk, LogWriter};
use tempfile::TempDir;

/// Places that an input can well hit.
const PLACES: [u64; 4] = [0x1000, 0x1010, 0xf, u64::MAX - 1];

struct Target {
    dir: TempDir,
    log: Vec<u8>,
}

impl Target {
    fn new() -> Target {
        let header = Header {
            writer: String::new(),
            host: String::new(),
            kernel: String::new(),
            command: Vec::new(),
            mechanism: Mechanism::Gate,
            wall_start_ns: 0,
            monotonic_start_ns: 0,
            page_size: 4096,
        };
        let nodes = (0..).zip(PLACES).map(|(parent, offset)| StackNode {
            parent: StackId(parent),
            module: ModuleId(0),
            offset,
            flags: StackNode::EXACT,
        });
        let event = CallEvent {
            thread: ThreadIx(0),
            space: SpaceId(0),
            call: Call::Munmap,
            abi: Abi::X86_64,
            args: [0; 6],
            outcome: Outcome::Returned(0),
            entry: Stamp(1),
            exit: Stamp(2),
            entry_ns: Nanos(1),
            exit_ns: Nanos(2),
            stack: StackId(PLACES.len() as u32),
            file: FileId(0),
        };
        let chunk = Chunk {
            nodes: nodes.collect(),
            events: vec![event],
            ..Chunk::default()
        };
        let mut writer = LogWriter::create(Vec::new(), &header).expect("memory can be written");
        writer.write_chunk(&chunk).expect("memory can be written");
        writer.finish().expect("memory can be written");
        Target {
            dir: tempfile::tempdir_in("/dev/shm").expect("a folder in memory"),
            log: writer.into_inner(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

thread_local! {
    static TARGET: Target = Target::new();
}

fuzz_target!(|bytes: &[u8]| {
    TARGET.with(|target| {
        fs::write(target.path(), &target.log).expect("memory can be written");
        let added = name_jit_code(&target.path(), [(SpaceId(0), bytes)]).expect("named");
        let file = File::open(target.path()).expect("a file");
        let names = LogReader::open(file).expect("a log").names();
        let names = names.expect("memory can be read");
        assert_eq!(names.len() as u64, added);
        for name in names {
            assert!(PLACES.contains(&name.lookup) && name.frames.len() == 1);
        }
    });
});
