//! Names places in a module whose sections are arbitrary bytes: debug information, its package, symbols,
//! Go's table, notes and links. The ELF files around them are sound, so that the bytes are read.
//!
//! `cargo +nightly fuzz run name_sections -- -rss_limit_mb=512 -max_len=16384` in `replay/`, or with the
//! stable compiler and `RUSTC_BOOTSTRAP=1`. The input is a row of sections: a byte that says which, two for
//! the length, and the bytes. `fuzz/seeds` makes inputs to begin with from files of this machine.
#![no_main]

use std::thread_local;

use libfuzzer_sys::fuzz_target;
use maptrail_replay_fuzz::{DEBUG, MODULE, Machine, PACKAGE, elf};

/// Names and kinds. What ends in `.dwo`, and the indices, go into the package.
const SECTIONS: [(&str, u32); 24] = [
    (".debug_info", 1),
    (".debug_abbrev", 1),
    (".debug_line", 1),
    (".debug_str", 1),
    (".debug_line_str", 1),
    (".debug_aranges", 1),
    (".debug_ranges", 1),
    (".debug_rnglists", 1),
    (".debug_addr", 1),
    (".debug_str_offsets", 1),
    (".debug_info.dwo", 1),
    (".debug_abbrev.dwo", 1),
    (".debug_line.dwo", 1),
    (".debug_str.dwo", 1),
    (".debug_str_offsets.dwo", 1),
    (".debug_rnglists.dwo", 1),
    (".debug_cu_index", 1),
    (".symtab", 2),
    (".strtab", 3),
    (".gopclntab", 1),
    (".note.gnu.build-id", 7),
    (".gnu_debuglink", 1),
    (".rela.dyn", 4),
    (".zdebug_info", 1),
];

thread_local! {
    static MACHINE: Machine = Machine::new();
}

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut sections: [&[u8]; SECTIONS.len()] = [&[]; SECTIONS.len()];
    while let [which, low, high, tail @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (section, tail) = tail.split_at(length);
        sections[usize::from(*which) % SECTIONS.len()] = section;
        rest = tail;
    }
    let parts = |package: bool| {
        let named = SECTIONS.iter().zip(&sections);
        // The symbols' strings are the section after them.
        let mut parts: Vec<(&str, u32, u32, &[u8])> = Vec::new();
        for ((name, kind), bytes) in named {
            if package == (name.ends_with(".dwo") || *name == ".debug_cu_index") {
                let link = parts.len() as u32 + 2;
                parts.push((name, *kind, link, bytes));
            }
        }
        elf(&parts)
    };
    MACHINE.with(|machine| {
        let module = parts(false);
        machine.put(MODULE, &module);
        machine.put(PACKAGE, &parts(true));
        machine.put(DEBUG, &module);
        let mut place = [0; 8];
        place[..bytes.len().min(3)].copy_from_slice(&bytes[..bytes.len().min(3)]);
        machine.ask(&[0, 5, 0x1000, 0x1130, 0x40_1136, u64::from_le_bytes(place)]);
    });
});
