//! Reads arbitrary bytes as a log: whatever they are, the reader must neither panic nor use memory
//! out of proportion.
//!
//! `cargo +nightly fuzz run read_bytes` in `tracelog/`. Checksums keep most inputs from going deep;
//! `read_sections` goes there.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use maptrail_tracelog::reader::{Chunk, LogReader};
use maptrail_tracelog::writer::LogWriter;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut log) = LogReader::open(Cursor::new(bytes)) else {
        return;
    };
    let mut chunk = Chunk::default();
    while log.next_chunk(&mut chunk).expect("memory can be read") {}
    let names = log.names().expect("memory can be read");
    let _ = (log.log_bytes(), log.health(), log.span());

    let mut file = Cursor::new(bytes.to_vec());
    let mut more = LogWriter::append(&mut file).expect("what can be opened can be added to");
    more.write_names(&names).expect("memory can be written");
    more.finish().expect("memory can be written");
    LogReader::open(file).expect("it is still a log");
});
