//! Names places in arbitrary bytes, taken as a module's file, as what belongs to it, or both: nothing
//! must panic, hang, or use memory out of proportion.
//!
//! `cargo +nightly fuzz run name_files -- -rss_limit_mb=512 -max_len=65536` in `replay/`, or with the
//! stable compiler and `RUSTC_BOOTSTRAP=1`. It finds little by itself; put small libraries with debug
//! information into `fuzz/corpus/name_files/`, with a byte before each (1: it is its own package, too;
//! 2: it is its own debug file, too). `name_sections` goes deeper.
#![no_main]

use std::thread_local;

use libfuzzer_sys::fuzz_target;
use maptrail_replay_fuzz::{DEBUG, MODULE, Machine, PACKAGE};

thread_local! {
    static MACHINE: Machine = Machine::new();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    MACHINE.with(|machine| {
        for (bit, name) in [(1, PACKAGE), (2, DEBUG)] {
            match how & bit {
                0 => machine.remove(name),
                _ => machine.put(name, bytes),
            }
        }
        machine.put(MODULE, bytes);
        machine.ask(&[0, 0x1000, 0x1105, 0x1119, 0x1130, 0x40_1136, u64::MAX]);
    });
});
