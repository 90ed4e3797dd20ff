//! Logs of other versions: newer minor ones are read as far as they are understood, newer major ones
//! are refused with a clear word.

use std::io::Cursor;

use maptrail_tracelog::reader::{LogReader, OpenError};
use maptrail_tracelog::record::{Body, Header, Mechanism, Name, NameSource, Record};
use maptrail_tracelog::types::{ModuleId, Nanos, Stamp};
use maptrail_tracelog::writer::{Chunk, LogWriter};

use crate::generate::{chunks, header, log, small_recording};

const BLOCK_HEADER: usize = 48;

/// Puts right the checksums of the block at `start`, after its bytes were changed.
fn reseal(log: &mut [u8], start: usize) {
    let len = u32::from_le_bytes(log[start + 12..start + 16].try_into().unwrap()) as usize;
    let payload = &log[start + BLOCK_HEADER..start + BLOCK_HEADER + len];
    let crc = crc32c::crc32c(payload);
    log[start + 40..start + 44].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&log[start..start + 44]);
    log[start + 44..start + 48].copy_from_slice(&crc.to_le_bytes());
}

/// A log that is not finished, with the offsets of its chunks.
fn unfinished(written: &[Chunk]) -> (Vec<u8>, Vec<usize>) {
    let mut writer = LogWriter::create(Vec::new(), &header()).unwrap();
    let mut starts = Vec::new();
    for chunk in written {
        starts.push(writer.bytes_written() as usize);
        writer.write_chunk(chunk).unwrap();
    }
    (writer.into_inner(), starts)
}

#[test]
fn a_newer_minor_version_is_read_and_a_newer_major_one_is_not() {
    let (written, names) = small_recording();
    let mut bytes = log(&written, &names);
    assert_eq!(bytes[..12], *b"MAPTRAIL\x01\x00\x00\x00");
    bytes[10..12].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    assert_eq!(chunks(&mut reader), written);
    for major in [2_u16, 258] {
        bytes[8..10].copy_from_slice(&major.to_le_bytes());
        let error = LogReader::open(Cursor::new(&bytes[..])).unwrap_err();
        let OpenError::NewerVersion { found, supported } = error else {
            panic!("{error}");
        };
        assert_eq!((found, supported), (major, 1));
        assert!(error.to_string().contains(&major.to_string()));
    }
}

#[test]
fn what_is_no_log_is_told_apart() {
    let open = |bytes: &[u8]| LogReader::open(Cursor::new(bytes.to_vec())).unwrap_err();
    assert!(matches!(open(b""), OpenError::Empty));
    assert!(matches!(
        open(b"\x7fELF and more of it"),
        OpenError::NotALog
    ));
    assert!(matches!(open(b"MAPTRAIM\x01\0\0\0"), OpenError::NotALog));
    assert!(matches!(open(b"x"), OpenError::NotALog));
    assert!(matches!(open(b"MAPTR"), OpenError::HeaderDamaged));
    assert!(matches!(
        open(b"MAPTRAIL\x01\0\0\0"),
        OpenError::HeaderDamaged
    ));
    assert!(matches!(
        open(b"MAPTRAIL\0\0\0\0"),
        OpenError::HeaderDamaged
    ));
}

#[test]
fn an_unknown_kind_of_block_is_passed_over() {
    let (written, _) = small_recording();
    let (mut bytes, starts) = unfinished(&written);
    bytes[starts[2] + 4] = 99;
    reseal(&mut bytes, starts[2]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let mut rest = written.clone();
    rest.remove(2);
    assert_eq!(chunks(&mut reader), rest);
    let health = reader.health();
    assert_eq!((health.unknown_blocks, health.damaged_blocks), (1, 0));
    assert!(health.is_complete());
}

fn note(stamp: u64, text: &str) -> Record {
    Record {
        stamp: Stamp(stamp),
        ns: Nanos(stamp),
        body: Body::Note(text.into()),
    }
}

fn notes() -> Chunk {
    Chunk {
        records: vec![note(1, "one"), note(2, "two"), note(3, "three")],
        ..Chunk::default()
    }
}

/// Where the records begin: after block header, count of sections and one table entry.
const RECORDS: usize = BLOCK_HEADER + 1 + 10;

#[test]
fn an_unknown_kind_of_record_is_passed_over() {
    let (mut bytes, starts) = unfinished(&[notes()]);
    let records = starts[0] + RECORDS;
    // Place, kind, length, stamp, time, length of the text, text.
    assert_eq!(bytes[records..records + 9], *b"\x00\x0d\x06\x01\x01\x03one");
    bytes[records + 1] = 200;
    reseal(&mut bytes, starts[0]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let back = chunks(&mut reader);
    assert_eq!(back[0].records, notes().records[1..]);
    assert_eq!(reader.health().unknown_records, 1);
    assert_eq!(reader.health().damaged_blocks, 0);
}

#[test]
fn an_unknown_variant_inside_a_record_costs_that_record_only() {
    let (written, _) = small_recording();
    let summary = written[3].clone();
    let both = Chunk {
        records: vec![summary.records[0].clone(), note(20, "last")],
        ..summary
    };
    let (mut bytes, starts) = unfinished(std::slice::from_ref(&both));
    let records = starts[0] + RECORDS;
    // Stamp 19, time 19000 as a 16-bit varint, WindowEnd::ProgramEnded.
    assert_eq!(bytes[records + 3..records + 8], [19, 251, 0x38, 0x4a, 0]);
    bytes[records + 7] = 77;
    reseal(&mut bytes, starts[0]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    assert_eq!(chunks(&mut reader)[0].records, both.records[1..]);
    assert_eq!(reader.health().unknown_records, 1);
}

#[test]
fn an_unknown_mechanism_does_not_cost_the_log() {
    let (written, _) = small_recording();
    let (mut bytes, _) = unfinished(&written);
    let start = 12;
    // Mechanism::Seccomp, in front of the time of day as a 64-bit number.
    let time = [&[253][..], &header().wall_start_ns.to_le_bytes()].concat();
    let at = bytes.windows(9).position(|w| w == time).unwrap() - 1;
    assert_eq!(bytes[at], 1);
    bytes[at] = 3;
    reseal(&mut bytes, start);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let newer = Header {
        mechanism: Mechanism::Unknown(3),
        ..header()
    };
    assert_eq!(reader.header(), &newer);
    assert_eq!(newer.mechanism.name(), "unknown");
    assert_eq!(chunks(&mut reader), written);
    // What is not understood is written as it was.
    let again = LogWriter::create(Vec::new(), &newer).unwrap().into_inner();
    assert!(bytes.starts_with(&again));
}

#[test]
fn an_unknown_source_of_a_name_costs_that_name_only() {
    let name = |lookup| Name {
        module: ModuleId(1),
        lookup,
        source: NameSource::Dynamic,
        frames: Vec::new(),
    };
    let mut writer = LogWriter::create(Vec::new(), &header()).unwrap();
    let start = writer.bytes_written() as usize;
    writer.write_names(&[name(7), name(8), name(9)]).unwrap();
    let mut bytes = writer.into_inner();
    // Length, module, lookup, source, no frames.
    let second = start + RECORDS + 5;
    assert_eq!(bytes[second..second + 5], [4, 1, 8, 1, 0]);
    bytes[second + 3] = 3;
    reseal(&mut bytes, start);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    for _ in 0..2 {
        assert_eq!(reader.names().unwrap(), [name(7), name(9)]);
        let health = reader.health();
        assert_eq!((health.unknown_names, health.damaged_blocks), (1, 0));
    }
}

#[test]
fn fields_added_at_the_end_of_a_record_are_passed_over() {
    let (mut bytes, starts) = unfinished(&[notes()]);
    let records = starts[0] + RECORDS;
    // The text becomes one byte shorter, which leaves a byte behind the last field.
    bytes[records + 5] = 2;
    reseal(&mut bytes, starts[0]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let back = chunks(&mut reader);
    assert_eq!(back[0].records[0], note(1, "on"));
    assert_eq!(back[0].records[1..], notes().records[1..]);
}

#[test]
fn an_unknown_section_is_passed_over() {
    let (written, _) = small_recording();
    let (mut bytes, starts) = unfinished(&written);
    // The second chunk: stacks, then events. The stacks become something unheard of.
    assert_eq!(bytes[starts[1] + BLOCK_HEADER..][..2], [2, 1]);
    bytes[starts[1] + BLOCK_HEADER + 1] = 60;
    reseal(&mut bytes, starts[1]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let back = chunks(&mut reader);
    assert_eq!(back[1].nodes, []);
    assert_eq!(back[1].events, written[1].events);
}
