//! Cut and damaged logs: what is whole reads back, the rest is said, and nothing false is told.

use std::io::Cursor;

use maptrail_tracelog::reader::{LogReader, OpenError};
use maptrail_tracelog::writer::{Chunk, LogWriter};
use proptest::prelude::*;

use crate::generate::{chunks, header, log, small_recording};

/// The log of a recorder that was killed before it could finish, and where its chunks end.
fn unfinished() -> (Vec<Chunk>, Vec<u8>, Vec<usize>) {
    let (written, names) = small_recording();
    let mut writer = LogWriter::create(Vec::new(), &header()).unwrap();
    let mut ends = vec![writer.bytes_written() as usize];
    for chunk in &written {
        writer.write_chunk(chunk).unwrap();
        ends.push(writer.bytes_written() as usize);
    }
    writer.write_names(&names).unwrap();
    (written, writer.into_inner(), ends)
}

#[test]
fn every_prefix_gives_its_whole_chunks() {
    let (written, names) = small_recording();
    let (_, _, ends) = unfinished();
    let bytes = log(&written, &names);
    for cut in 0..bytes.len() {
        let prefix = &bytes[..cut];
        let opened = LogReader::open(Cursor::new(prefix));
        if cut < ends[0] {
            match opened.unwrap_err() {
                OpenError::Empty => assert_eq!(cut, 0),
                OpenError::HeaderDamaged => assert!(cut > 0),
                other => panic!("cut at {cut}: {other}"),
            }
            continue;
        }
        let mut reader = opened.unwrap();
        let whole = ends[1..].iter().filter(|&&end| end <= cut).count();
        assert_eq!(chunks(&mut reader), written[..whole], "cut at {cut}");
        let health = reader.health();
        assert!(!health.has_index, "cut at {cut}");
        assert_eq!(health.damaged_blocks, 0, "cut at {cut}");
        assert_eq!(health.skipped_bytes, 0, "cut at {cut}");
        assert_eq!(health.has_end, whole == written.len(), "cut at {cut}");
        if whole < written.len() {
            assert_eq!(health.cut_bytes as usize, cut - ends[whole], "cut at {cut}");
            assert!(!health.is_complete());
        }
        assert!(reader.names().unwrap().len() <= names.len());
        assert_eq!(reader.log_bytes().unwrap().total as usize, cut);
    }
}

#[test]
fn names_can_be_added_to_every_prefix() {
    let (written, bytes, ends) = unfinished();
    let (_, names) = small_recording();
    for cut in ends[0]..ends[ends.len() - 1] {
        let mut file = Cursor::new(bytes[..cut].to_vec());
        let mut writer = LogWriter::append(&mut file).unwrap();
        writer.write_names(&names).unwrap();
        writer.finish().unwrap();
        let mended = file.into_inner();
        let whole = ends[1..].iter().filter(|&&end| end <= cut).count();
        // By the index, and by a walk.
        for last in [mended.len(), mended.len() - 1] {
            let mut reader = LogReader::open(Cursor::new(&mended[..last])).unwrap();
            assert_eq!(chunks(&mut reader), written[..whole], "cut at {cut}");
            assert_eq!(reader.names().unwrap(), names, "cut at {cut}");
            reader.check_other_blocks().unwrap();
            let health = reader.health();
            assert_eq!(health.has_index, last == mended.len());
            // A rest that is too short for a mark lies between the blocks, and may have been one.
            let hole = u64::from(health.skipped_bytes > 0);
            assert_eq!(health.damaged_blocks, hole, "cut at {cut}");
            assert!(!health.is_complete(), "cut at {cut}");
            let told = health.cut_bytes + health.skipped_bytes;
            assert!(
                told >= (cut - ends[whole]) as u64,
                "cut at {cut}: {health:?}"
            );
        }
    }
}

/// Reads a damaged log and asserts that nothing in it is false, and nothing missing unsaid.
fn nothing_false(damaged: &[u8], written: &[Chunk], what: &str) {
    let mut reader = match LogReader::open(Cursor::new(damaged)) {
        Ok(reader) => reader,
        // Refusing the log is a way to say it.
        Err(OpenError::Io(e)) => panic!("{what}: {e}"),
        Err(_) => return,
    };
    assert_eq!(reader.header(), &header(), "{what}");
    let back = chunks(&mut reader);
    let mut originals = written.iter();
    for chunk in &back {
        assert!(
            originals.any(|c| c == chunk),
            "{what}: a chunk that was never written"
        );
    }
    let (_, names) = small_recording();
    let named = reader.names().unwrap();
    assert!(named.is_empty() || named == names, "{what}");
    let health = reader.health();
    if back.len() < written.len() || named != names {
        let told = health.damaged_blocks > 0 || health.cut_bytes > 0;
        assert!(told, "{what}: something is missing, and {health:?}");
        assert!(!health.is_complete(), "{what}");
    }
    assert!(
        back.len() + 1 >= written.len(),
        "{what}: one flip costs one chunk"
    );
    reader.log_bytes().unwrap();
}

#[test]
fn every_flipped_bit_is_found_or_does_no_harm() {
    let (written, names) = small_recording();
    for bytes in [log(&written, &names), unfinished().1] {
        for place in 0..bytes.len() {
            for bit in [0, 3, 7] {
                let mut damaged = bytes.clone();
                damaged[place] ^= 1 << bit;
                nothing_false(&damaged, &written, &format!("bit {bit} of byte {place}"));
            }
        }
    }
}

#[test]
fn reading_goes_on_after_a_damaged_block() {
    let (written, bytes, ends) = unfinished();
    // In the second chunk: its payload, and its header.
    for place in [ends[2] - 1, ends[1] + 20] {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0xff;
        let mut reader = LogReader::open(Cursor::new(&damaged[..])).unwrap();
        let mut rest = written.clone();
        rest.remove(1);
        assert_eq!(chunks(&mut reader), rest);
        assert_eq!(reader.health().damaged_blocks, 1);
        // Reading it again does not count it again.
        reader.rewind();
        assert_eq!(chunks(&mut reader), rest);
        assert_eq!(reader.health().damaged_blocks, 1);
        assert!(reader.health().has_end);
        assert!(!reader.health().is_complete());
    }
    // The third chunk's first node still has its number.
    let mut damaged = bytes.clone();
    damaged[ends[1] + 20] ^= 1;
    let mut reader = LogReader::open(Cursor::new(&damaged[..])).unwrap();
    let mut chunk = Chunk::default();
    reader.seek_chunk(1);
    assert!(reader.next_chunk(&mut chunk).unwrap());
    assert_eq!((reader.first_node().0, &chunk), (3, &written[2]));
    assert_eq!(reader.health().skipped_bytes as usize, ends[2] - ends[1]);
}

#[test]
fn a_hole_is_counted_in_blocks_and_bytes() {
    let (written, bytes, ends) = unfinished();
    // A long stretch of zeros over two chunks, as a file system leaves after a crash.
    let mut damaged = bytes.clone();
    damaged[ends[1]..ends[3]].fill(0);
    let mut reader = LogReader::open(Cursor::new(&damaged[..])).unwrap();
    assert_eq!(
        chunks(&mut reader),
        [written[0].clone(), written[3].clone()]
    );
    let health = reader.health();
    assert_eq!(health.damaged_blocks, 2);
    assert_eq!(health.skipped_bytes as usize, ends[3] - ends[1]);
    assert_eq!(health.cut_bytes, 0);

    // And at the end, longer than the reader's window.
    let mut padded = bytes.clone();
    padded.resize(bytes.len() + 200_000, 0);
    let mut reader = LogReader::open(Cursor::new(&padded[..])).unwrap();
    assert_eq!(chunks(&mut reader), written);
    assert_eq!(reader.health().cut_bytes, 200_000);
}

#[test]
fn a_block_is_found_wherever_it_lies_behind_damage() {
    let (written, bytes, ends) = unfinished();
    // Around the places where the windows of the search meet.
    for junk in (65_480..65_600).chain([1, 47, 48, 49, 131_026]) {
        let mut damaged = bytes[..ends[1]].to_vec();
        damaged.extend(std::iter::repeat_n(0xf5, junk));
        damaged.extend_from_slice(&bytes[ends[1]..]);
        let mut reader = LogReader::open(Cursor::new(&damaged[..])).unwrap();
        assert_eq!(chunks(&mut reader), written, "{junk} bytes of junk");
        assert_eq!(reader.health().skipped_bytes as usize, junk);
        assert_eq!(reader.health().cut_bytes, 0);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        keep in 0_usize..200,
    ) {
        let (written, names) = small_recording();
        let mut start = log(&written, &names);
        start.truncate(keep);
        start.extend(bytes);
        if let Ok(mut reader) = LogReader::open(Cursor::new(&start[..])) {
            prop_assert!(chunks(&mut reader).len() <= written.len());
            reader.names().unwrap();
            reader.log_bytes().unwrap();
        }
    }

    #[test]
    fn overwritten_stretches_tell_nothing_false(
        at: prop::sample::Index,
        junk in prop::collection::vec(any::<u8>(), 1..120),
    ) {
        let (written, names) = small_recording();
        let mut bytes = log(&written, &names);
        let at = at.index(bytes.len());
        let end = bytes.len().min(at + junk.len());
        bytes[at..end].copy_from_slice(&junk[..end - at]);
        if let Ok(mut reader) = LogReader::open(Cursor::new(&bytes[..])) {
            let back = chunks(&mut reader);
            let mut originals = written.iter();
            for chunk in &back {
                prop_assert!(originals.any(|c| c == chunk));
            }
            let told = reader.health();
            let missing = back.len() < written.len();
            prop_assert!(!missing || told.damaged_blocks > 0 || told.cut_bytes > 0);
        }
    }
}
