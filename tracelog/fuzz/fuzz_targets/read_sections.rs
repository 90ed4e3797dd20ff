//! Reads arbitrary bytes as the sections of a chunk or of a names block, with all checksums right:
//! the decoders must not panic, and what they do decode must survive being written again.
//!
//! `cargo +nightly fuzz run read_sections` in `tracelog/`. The first byte of the input says which
//! block, the second which section, the third how it is encoded; the rest is the section.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use maptrail_tracelog::reader::{Chunk, LogReader};
use maptrail_tracelog::record::{Header, Mechanism};
use maptrail_tracelog::writer::LogWriter;

fn header() -> Header {
    Header {
        writer: String::new(),
        host: String::new(),
        kernel: String::new(),
        command: Vec::new(),
        mechanism: Mechanism::Gate,
        wall_start_ns: 0,
        monotonic_start_ns: 0,
        page_size: 4096,
    }
}

fn begin() -> LogWriter<Vec<u8>> {
    LogWriter::create(Vec::new(), &header()).expect("memory can be written")
}

/// A block with one section, as the format has it.
fn block(kind: u8, id: u8, encoding: u8, raw_len: u32, stored: &[u8]) -> Vec<u8> {
    let mut payload = vec![1, id, encoding];
    payload.extend((stored.len() as u32).to_le_bytes());
    payload.extend(raw_len.to_le_bytes());
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

fuzz_target!(|bytes: &[u8]| {
    let [kind, id, encoding, stored @ ..] = bytes else {
        return;
    };
    let kind = 2 + kind % 3;
    let raw_len = match encoding {
        0 => stored.len() as u32,
        n => u32::from(*n) << 12,
    };
    let mut log = begin().into_inner();
    let index = log.len() as u64;
    log.extend(block(kind, id % 8, encoding % 3, raw_len, stored));
    if kind == 4 {
        // An end mark behind an index, so that the reader looks at it.
        let mut end = vec![0xf5, b'M', b'T', 0xfa, 5, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0];
        end.extend([0; 24]);
        end.extend(crc32c::crc32c(&index.to_le_bytes()).to_le_bytes());
        end.extend(crc32c::crc32c(&end).to_le_bytes());
        end.extend(index.to_le_bytes());
        log.extend(end);
    }

    let mut reader = LogReader::open(Cursor::new(&log[..])).expect("the header is good");
    let names = reader.names().expect("memory can be read");
    let _ = (reader.log_bytes(), reader.span());
    let mut again = begin();
    let mut chunk = Chunk::default();
    let mut chunks = Vec::new();
    while reader.next_chunk(&mut chunk).expect("memory can be read") {
        again.write_chunk(&chunk).expect("memory can be written");
        chunks.push(chunk.clone());
    }
    again.write_names(&names).expect("memory can be written");
    again.finish().expect("memory can be written");

    let mut reader = LogReader::open(Cursor::new(again.into_inner())).expect("a good log");
    for expected in chunks {
        assert!(reader.next_chunk(&mut chunk).expect("memory can be read"));
        assert_eq!(chunk, expected);
    }
    assert_eq!(reader.names().expect("memory can be read"), names);
    assert_eq!(reader.health().damaged_blocks, 0);
});
