//! Small logs that ask for much memory: they are neither believed nor written.

use std::io::Cursor;

use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{CallEvent, StackNode};
use maptrail_tracelog::types::{ModuleId, Nanos, StackId, Stamp};
use maptrail_tracelog::writer::{Chunk, LogWriter};

use crate::generate::{chunks, header, log, small_recording};

const CHUNK: u8 = 2;
const NAMES: u8 = 3;

/// A block with one section, as the format has it.
fn block(kind: u8, id: u8, encoding: u8, raw_len: usize, stored: &[u8]) -> Vec<u8> {
    let mut payload = vec![1, id, encoding];
    payload.extend((stored.len() as u32).to_le_bytes());
    payload.extend((raw_len as u32).to_le_bytes());
    payload.extend(stored);
    let mut block = vec![0xf5, b'M', b'T', 0xfa, kind, 0, 0, 0];
    block.extend(1_u32.to_le_bytes());
    block.extend((payload.len() as u32).to_le_bytes());
    block.extend([0; 24]);
    block.extend(crc32c::crc32c(&payload).to_le_bytes());
    block.extend(crc32c::crc32c(&block).to_le_bytes());
    block.extend(payload);
    block
}

fn squeezed(kind: u8, id: u8, raw: &[u8]) -> Vec<u8> {
    let stored = zstd::bulk::compress(raw, 19).unwrap();
    block(kind, id, 1, raw.len(), &stored)
}

#[test]
fn a_few_bytes_do_not_stand_for_a_multitude() {
    // 2^18 events in one lane of one group (brk), and as many nodes; all columns zeros.
    let mut events = b"\x80\x80\x10\x01\x05\x00\x00\x01\x04\x01\x00\x00\x00".to_vec();
    events.resize(events.len() + 5 + 4, 0);
    let nodes = b"\x01\x80\x80\x10\x00\x00\x00\x00";
    // Notes of no text at place 0, stamp 0, time 0; starts of spaces with a million empty arguments.
    let notes = b"\x00\x0d\x03\x00\x00\x00".repeat(170_000);
    let mut start = b"\x00\x01\xfb\xff\x3f\x00\x00\x00\x00\x00\x00\xfc\xc0\xff\x0f\x00".to_vec();
    start.resize(1 << 20, 0);
    let names = b"\x04\x00\x00\x00\x00".repeat(200_000);
    for (what, block) in [
        ("events", block(CHUNK, 2, 0, events.len(), &events)),
        ("nodes", block(CHUNK, 1, 0, nodes.len(), nodes)),
        ("notes", squeezed(CHUNK, 4, &notes)),
        ("arguments", squeezed(CHUNK, 4, &start)),
        ("names", squeezed(NAMES, 5, &names)),
    ] {
        assert!(block.len() < 250, "{what}: {} bytes", block.len());
        let mut log = LogWriter::create(Vec::new(), &header())
            .unwrap()
            .into_inner();
        log.extend(block);
        let mut reader = LogReader::open(Cursor::new(&log[..])).unwrap();
        assert_eq!(chunks(&mut reader), [], "{what}");
        assert_eq!(reader.names().unwrap(), [], "{what}");
        assert_eq!(reader.health().damaged_blocks, 1, "{what}");
    }
}

#[test]
fn events_and_nodes_that_are_all_alike_take_their_bytes() {
    let nothing = CallEvent {
        args: [0; 6],
        entry: Stamp(0),
        exit: Stamp(0),
        entry_ns: Nanos(0),
        exit_ns: Nanos(0),
        ..small_recording().0[1].events[0]
    };
    let nodes = (1..=1 << 18).map(|id| StackNode {
        parent: StackId(id),
        module: ModuleId(0),
        offset: 0,
        flags: 0,
    });
    let written = [Chunk {
        nodes: nodes.collect(),
        events: vec![nothing; 1 << 18],
        ..Chunk::default()
    }];
    let bytes = log(&written, &[]);
    let least = (1 << 18) / 16 + (1 << 18) / 128;
    assert!((least..least + 1000).contains(&bytes.len()));
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    assert!(chunks(&mut reader) == written);
    assert_eq!(reader.health().damaged_blocks, 0);
}
