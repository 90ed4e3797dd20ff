//! What is written reads back, whatever it is.

use std::io::{self, Cursor, Write};

use maptrail_tracelog::reader::{Health, LogReader};
use maptrail_tracelog::record::{Body, CallEvent, Record, StackNode};
use maptrail_tracelog::types::{Nanos, StackId, Stamp};
use maptrail_tracelog::writer::{Chunk, LogWriter};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::generate::{self, chunk, chunks, header, log, name, small_recording};

proptest! {
    // Whole logs are large; fewer of them will do.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chunks_and_names_come_back(
        written in vec(chunk(), 0..5),
        names in vec(name(), 0..9),
    ) {
        let bytes = log(&written, &names);
        let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
        prop_assert_eq!(reader.header(), &header());
        prop_assert_eq!(reader.names().unwrap(), names.clone());
        prop_assert_eq!(&chunks(&mut reader), &written);
        prop_assert_eq!(reader.names().unwrap(), names);
        let has_end = (written.iter().flat_map(|c| &c.records))
            .any(|r| matches!(r.body, Body::Summary(_)));
        let healthy = Health { has_end, has_index: true, ..Health::default() };
        prop_assert_eq!(reader.health(), healthy);
        reader.rewind();
        prop_assert_eq!(&chunks(&mut reader), &written);
    }

    #[test]
    fn the_index_says_what_a_walk_over_the_blocks_says(written in vec(chunk(), 0..5)) {
        let bytes = log(&written, &[]);
        // Without its last byte the end mark is no end mark.
        let cut = &bytes[..bytes.len() - 1];
        let indexed = LogReader::open(Cursor::new(&bytes[..])).unwrap();
        let walked = LogReader::open(Cursor::new(cut)).unwrap();
        prop_assert!(indexed.health().has_index);
        prop_assert!(!walked.health().has_index);
        prop_assert!(indexed.chunks().eq(walked.chunks()));
        prop_assert_eq!(indexed.span(), walked.span());
    }
}

#[test]
fn node_ids_run_on_from_chunk_to_chunk() {
    let (written, _) = small_recording();
    let bytes = log(&written, &[]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let mut chunk = Chunk::default();
    let mut firsts = Vec::new();
    while reader.next_chunk(&mut chunk).unwrap() {
        firsts.push(reader.first_node());
    }
    assert_eq!(firsts, [StackId(0), StackId(1), StackId(3), StackId(0)]);
}

#[test]
fn any_chunk_can_be_read_by_itself() {
    let (written, _) = small_recording();
    let bytes = log(&written, &[]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let infos: Vec<_> = reader.chunks().collect();
    assert_eq!(infos.len(), written.len());
    let mut chunk = Chunk::default();
    for i in (0..written.len()).rev() {
        reader.seek_chunk(i);
        assert!(reader.next_chunk(&mut chunk).unwrap());
        assert_eq!(chunk, written[i]);
        assert_eq!(infos[i].first_ns, chunk.first_ns);
        assert_eq!(infos[i].low_water, chunk.low_water);
    }
    assert_eq!(
        infos.iter().map(|c| c.has_checkpoint).collect::<Vec<_>>(),
        [true, false, false, false]
    );
    assert!(infos[3].has_summary && !infos[0].has_summary);
    assert_eq!(infos[1].last_ns, Nanos(9904));
    assert_eq!(reader.span(), Some((Nanos(0), Nanos(19_000))));
    reader.seek_chunk(usize::MAX);
    assert!(!reader.next_chunk(&mut chunk).unwrap());
}

#[test]
fn every_byte_is_accounted_for() {
    let (written, names) = small_recording();
    let bytes = log(&written, &names);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let counted = reader.log_bytes().unwrap();
    assert_eq!(counted.total, bytes.len() as u64);
    let parts = [
        counted.events,
        counted.stacks,
        counted.modules,
        counted.symbols,
        counted.other,
    ];
    assert!(parts.iter().all(|&n| n > 0), "{counted:?}");
    assert_eq!(parts.iter().sum::<u64>(), counted.total);

    // Twice the events are more bytes of events, and of nothing else but framing.
    let mut more = written.clone();
    more[1].events.extend_from_within(..);
    let bytes = log(&more, &names);
    let recounted = LogReader::open(Cursor::new(&bytes[..]))
        .unwrap()
        .log_bytes()
        .unwrap();
    assert!(recounted.events > counted.events);
    assert_eq!(recounted.stacks, counted.stacks);
    assert_eq!(recounted.modules, counted.modules);
    assert_eq!(recounted.symbols, counted.symbols);
}

#[test]
fn a_chunk_that_is_too_large_becomes_several() {
    let event = |stamp: u64| CallEvent {
        entry: Stamp(stamp),
        exit: Stamp(stamp + 5),
        ..small_recording().0[1].events[0]
    };
    let one = event(0);
    let events: Vec<CallEvent> = (0..300_000)
        .map(|i| CallEvent {
            entry: Stamp(1000 + i),
            exit: Stamp(1001 + i),
            ..one
        })
        .collect();
    let nodes: Vec<StackNode> = (0..300_000)
        .map(|i| StackNode {
            parent: StackId(i),
            ..small_recording().0[1].nodes[0]
        })
        .collect();
    let big = Chunk {
        first_ns: Nanos(1),
        low_water: Stamp(400_000),
        nodes,
        records: vec![Record {
            stamp: Stamp(17),
            ns: Nanos(2),
            body: Body::Note("first".into()),
        }],
        events,
    };
    let bytes = log(&[big.clone(), big.clone()], &[]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let mut back = Chunk::default();
    let mut part = Chunk::default();
    let mut low_waters = Vec::new();
    while reader.next_chunk(&mut part).unwrap() {
        if !part.nodes.is_empty() {
            assert_eq!(reader.first_node().0 as usize, back.nodes.len() + 1);
        }
        assert!(part.events.is_empty() || back.nodes.len() + part.nodes.len() >= 300_000);
        low_waters.push(part.low_water.0);
        back.nodes.append(&mut part.nodes);
        back.records.append(&mut part.records);
        back.events.append(&mut part.events);
    }
    // Nodes; nodes, the note and events; events. What is still to come is never promised away.
    assert_eq!(low_waters[..3], [17, 1000 + (1 << 18), 400_000]);
    assert_eq!(back.events, [&big.events[..], &big.events[..]].concat());
    assert_eq!(back.nodes, [&big.nodes[..], &big.nodes[..]].concat());
    assert_eq!(back.records, [&big.records[..], &big.records[..]].concat());
}

#[test]
fn records_beyond_the_limit_of_a_section_become_several_chunks() {
    let note = |i: u64| Record {
        stamp: Stamp(i),
        ns: Nanos(i),
        body: Body::Note(format!("{i}").repeat(20 << 20)),
    };
    let written = Chunk {
        low_water: Stamp(9),
        records: (0..5).map(note).collect(),
        ..Chunk::default()
    };
    let bytes = log(std::slice::from_ref(&written), &[]);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    let back = chunks(&mut reader);
    assert!(back.len() > 1);
    assert_eq!(back.iter().map(|c| c.records.len()).sum::<usize>(), 5);
    assert!(back.iter().flat_map(|c| &c.records).eq(&written.records));
    for pair in back.windows(2) {
        assert!(pair[0].low_water <= pair[1].records[0].stamp);
    }
    assert_eq!(back[back.len() - 1].low_water, Stamp(9));
}

#[test]
fn a_record_that_no_section_can_hold_is_refused() {
    let mut log = LogWriter::create(Vec::new(), &header()).unwrap();
    let huge = Chunk {
        records: vec![Record {
            stamp: Stamp(1),
            ns: Nanos(1),
            body: Body::Note("x".repeat(65 << 20)),
        }],
        ..Chunk::default()
    };
    let error = log.write_chunk(&huge).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(
        log.write_chunk(&Chunk::default()).is_err(),
        "the writer has stopped"
    );
}

#[test]
fn names_can_be_added_to_a_finished_log() {
    let (written, names) = small_recording();
    let mut file = Cursor::new(log(&written, &names));
    for round in 2..4 {
        let mut writer = LogWriter::append(&mut file).unwrap();
        let refused = writer.write_chunk(&written[0]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        writer.write_names(&names).unwrap();
        writer.finish().unwrap();
        assert_eq!(writer.bytes_written(), file.get_ref().len() as u64);
        let mut reader = LogReader::open(Cursor::new(&file.get_ref()[..])).unwrap();
        assert_eq!(reader.names().unwrap(), vec![names.clone(); round].concat());
        assert_eq!(chunks(&mut reader), written);
        assert!(reader.health().has_index);
        assert!(reader.health().is_complete());
    }
}

#[test]
fn many_names_take_many_blocks() {
    let (_, names) = small_recording();
    let mut name = names[0].clone();
    name.frames[0].function = "f".repeat(1 << 20);
    let many: Vec<_> = (0..9)
        .map(|i| {
            let mut name = name.clone();
            name.lookup = i;
            name
        })
        .collect();
    let bytes = log(&[], &many);
    let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
    assert!(reader.names().unwrap() == many);
}

/// Takes so many bytes, then is full, like a disk.
struct Full(Vec<u8>, usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = bytes.len().min(self.1 - self.0.len());
        if room == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.extend_from_slice(&bytes[..room]);
        Ok(room)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_leaves_the_chunks_before() {
    let (written, _) = small_recording();
    let whole = log(&written, &[]);
    for room in [whole.len() / 2, whole.len() * 2 / 3] {
        let mut writer = LogWriter::create(Full(Vec::new(), room), &header()).unwrap();
        let good = (written.iter())
            .take_while(|chunk| writer.write_chunk(chunk).is_ok())
            .count();
        assert!(good < written.len());
        assert!(
            writer.write_chunk(&written[0]).is_err(),
            "no hole in the log"
        );
        assert!(writer.finish().is_err());
        let bytes = writer.into_inner().0;
        let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
        assert_eq!(chunks(&mut reader), written[..good]);
        assert!(reader.health().cut_bytes > 0);
    }
}

#[test]
fn a_log_that_was_cut_back_goes_on() {
    let (written, _) = small_recording();
    let whole = log(&written, &[]);
    let mut writer = LogWriter::create(Full(Vec::new(), whole.len() / 2), &header()).unwrap();
    let good = (written.iter())
        .take_while(|chunk| writer.write_chunk(chunk).is_ok())
        .count();
    assert!(good < written.len());

    let end = writer.bytes_written() as usize;
    let out = writer.get_mut();
    out.0.truncate(end);
    out.1 = usize::MAX;
    writer.was_cut_back();
    for chunk in &written[good..] {
        writer.write_chunk(chunk).unwrap();
    }
    writer.finish().unwrap();
    let bytes = writer.into_inner().0;
    assert!(bytes == whole, "the failure left a trace");
}

proptest! {
    #[test]
    fn single_events_come_back(event in generate::event()) {
        let written = [Chunk { events: vec![event], ..Chunk::default() }];
        let bytes = log(&written, &[]);
        let mut reader = LogReader::open(Cursor::new(&bytes[..])).unwrap();
        prop_assert_eq!(&chunks(&mut reader)[..], &written[..]);
    }
}
