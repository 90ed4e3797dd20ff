//! Files that are no files, damaged ones, and some that were made to do harm.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use maptrail_replay::symbols::Symboliser;
use object::{Object, ObjectSection};
use tempfile::TempDir;

use crate::{Library, Logged, build_id, functions, go_program, names, names_of, new_program, run};

/// Whether nothing comes of a file, even if it is said to have been open while it ran.
fn has_no_names(path: &Path) -> bool {
    let mut logged = Logged::new(path, &[1; 20]);
    logged.opened = Some(path.to_owned());
    let names = logged.name(&mut Symboliser::default(), &[0x1000]);
    names[0].frames.is_empty()
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let dir = TempDir::new().expect("a folder");
    for path in [
        dir.path(),
        Path::new("/dev/zero"),
        Path::new("relative/lib.so"),
    ] {
        assert!(has_no_names(path));
    }
    // A pipe that nobody writes to: opening it would wait for ever.
    let pipe = dir.path().join("pipe");
    run(Command::new("mkfifo").arg(&pipe));
    assert!(has_no_names(&pipe));
}

#[test]
fn a_section_that_unpacks_to_a_mountain_is_left_packed() {
    let library = Library::new(&["-g"]);
    let (lookup, id) = (library.inside("outer"), build_id(&library.bytes()));
    let zeroes = library.dir.path().join("zeroes");
    let file = fs::File::create(&zeroes).expect("a file");
    file.set_len(16 << 20).expect("a hole");
    let update = format!(".debug_str={}", zeroes.display());
    let original = library.bytes();
    for packing in ["none", "zlib-gnu", "zlib"] {
        fs::write(&library.path, &original).expect("written");
        let packing_option = format!("--compress-debug-sections={packing}");
        for options in [&["--update-section", &update][..], &[&packing_option]] {
            run(Command::new("objcopy").args(options).arg(&library.path));
        }
        // Its symbol table still serves.
        let names = names(&library.path, &id, &[lookup]);
        assert_eq!(functions(&names[0]).last(), Some(&"outer"));
        assert_eq!(names[0].frames[0].line.is_some(), packing == "none");
    }
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Where a section lies in a file.
fn section(elf: &[u8], name: &str) -> Range<usize> {
    let file = object::File::parse(elf).expect("an ELF file");
    let section = file.section_by_name(name).expect("the section");
    let (at, size) = section.file_range().expect("in the file");
    at as usize..(at + size) as usize
}

/// Writes damaged versions of a file in its place: some bytes in the `part` changed, and now and then the
/// end cut off. After each, `ask` is asked whether names still came; at least one in five times they must,
/// or nothing was tested.
fn damage(path: &Path, part: Range<usize>, cut: bool, mut ask: impl FnMut() -> bool) {
    let good = fs::read(path).expect("a file");
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let rounds = if cut { 400 } else { 150 };
    let mut named = 0;
    for _ in 0..rounds {
        let mut bad = good.clone();
        for _ in 0..1 + random.below(12) {
            bad[part.start + random.below(part.len())] = random.below(256) as u8;
        }
        if cut && random.below(4) == 0 {
            bad.truncate(random.below(good.len()));
        }
        fs::write(path, &bad).expect("written");
        named += usize::from(ask());
    }
    fs::write(path, &good).expect("written");
    assert!(named * 5 > rounds, "only {named} of {rounds} were read");
}

#[test]
fn damaged_files_do_no_harm() {
    let library = Library::new(&["-g"]);
    let good = library.bytes();
    let (lookup, id) = (library.inside("outer"), build_id(&good));
    let ask = || {
        let lookups = [0, lookup, lookup + 7, u64::MAX];
        let names = names(&library.path, &id, &lookups);
        functions(&names[1]).contains(&"outer")
    };
    damage(&library.path, 0..good.len(), true, ask);
    for name in [".debug_info", ".debug_abbrev", ".debug_line", ".symtab"] {
        damage(&library.path, section(&good, name), false, ask);
    }
}

#[test]
fn damaged_packages_do_no_harm() {
    let source = "int outer(int n) { return n; }\nint main(void) { return outer(1); }";
    let flags = ["-O1", "-gsplit-dwarf", "-gdwarf-4", "-Wl,--build-id"];
    let (dir, program) = new_program("cc", "c", source, &flags);
    let package = dir.path().join("program.dwp");
    run(Command::new("dwp")
        .args(["-e", "program", "-o", "program.dwp"])
        .current_dir(dir.path()));
    let bytes = fs::read(&program).expect("a file");
    let (lookup, id) = (crate::inside(&bytes, "outer"), build_id(&bytes));
    let ask = || {
        let names = names(&program, &id, &[lookup - 5, lookup - 1]);
        functions(&names[0]).contains(&"outer")
    };
    let packed = fs::read(&package).expect("a package");
    damage(&package, 0..packed.len(), true, ask);
    for name in [".debug_cu_index", ".debug_info.dwo", ".debug_abbrev.dwo"] {
        damage(&package, section(&packed, name), false, ask);
    }
}

#[test]
fn damaged_go_tables_do_no_harm() {
    let Some((_dir, program)) = go_program(&["-ldflags=-s -w"]) else {
        return;
    };
    let good = fs::read(&program).expect("a file");
    let table = section(&good, ".gopclntab");
    let file = object::File::parse(&*good).expect("an ELF file");
    let text = file.section_by_name(".text").expect("code");
    let all: Vec<u64> = (0..64)
        .map(|n| text.address() + n * text.size() / 64)
        .collect();
    let ask = || {
        names_of(&program, &all)
            .iter()
            .any(|n| !n.frames.is_empty())
    };
    let (head, tail) = (table.start..table.start + 72, table.start + 72..table.end);
    damage(&program, tail, false, ask);
    // Of a damaged head most are no tables any more: no more is asked than that it ends well.
    let mut bad = good.clone();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..150 {
        bad[head.clone()].copy_from_slice(&good[head.clone()]);
        bad[head.start + random.below(head.len())] = random.below(256) as u8;
        fs::write(&program, &bad).expect("written");
        ask();
    }
}

/// Assembles a library that has a function `victim`, and this debug information.
fn victim(debug: &str) -> (TempDir, std::path::PathBuf) {
    let source = format!(
        "
.text
.globl victim
.type victim, @function
victim:
    nop; nop; nop; nop
.size victim, . - victim
{debug}
"
    );
    let flags = ["-shared", "-nostdlib", "-Wl,--build-id", "-Wl,-Bsymbolic"];
    new_program("cc", "s", &source, &flags)
}

/// The victim's name, and whether it has a line or an inlined function.
fn ask_victim(library: &Path) -> (String, bool) {
    let bytes = fs::read(library).expect("a file");
    let names = names(
        library,
        &build_id(&bytes),
        &[crate::inside(&bytes, "victim") - 4],
    );
    let frames = &names[0].frames;
    let more = frames.len() > 1 || frames.iter().any(|f| f.line.is_some());
    (
        functions(&names[0])
            .last()
            .map(|f| (*f).to_owned())
            .unwrap_or_default(),
        more,
    )
}

/// A compilation unit of DWARF 4 that covers all code, with these entries in it.
fn unit(abbreviations: &str, entries: &str) -> String {
    format!(
        "
.section .debug_abbrev,\"\",@progbits
abbrevs:
    .uleb128 1, 0x11; .byte 1; .uleb128 0x11, 0x01, 0x12, 0x07, 0, 0
    .uleb128 2, 0x2e; .byte 1; .uleb128 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0
    .uleb128 3, 0x1d; .byte 1; .uleb128 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0
    .uleb128 4, 0x1d; .byte 1; .uleb128 0, 0
    {abbreviations}
    .uleb128 0
.section .debug_info,\"\",@progbits
    .long unit_end - unit_begin
unit_begin:
    .short 4
    .long 0
    .byte 8
    .uleb128 1; .quad victim, 16
    {entries}
unit_end:
"
    )
}

#[test]
fn functions_inlined_a_million_deep_do_not_exhaust_the_stack() {
    let function = ".uleb128 2; .asciz \"victim\"; .quad victim, 16";
    let inlined = ".uleb128 3; .asciz \"inlined\"; .quad victim, 16";
    let (_dir, library) = victim(&unit("", &format!("{function}; {inlined}; .fill 4, 1, 0")));
    assert_eq!(ask_victim(&library), ("victim".to_owned(), true));
    let deep = format!("{function}; {inlined}; .fill 1000000, 1, 4; .fill 1000003, 1, 0");
    let (_dir, library) = victim(&unit("", &deep));
    assert_eq!(ask_victim(&library), ("victim".to_owned(), false));
}

#[test]
fn units_that_read_the_same_bytes_over_and_over_are_given_up() {
    // Each of the units reads the abbreviations from another place in them on: all but the first.
    let table = ".fill 1000000, 1, 1";
    let units = "
.uleb128 2; .asciz \"victim\"; .quad victim, 16; .fill 2, 1, 0
unit_end_early:
.set offset, 100
.rept 20000
    .long 8
    .short 4
    .long offset
    .byte 8
    .byte 1
    .set offset, offset + 1
.endr";
    let text = unit(table, units).replace("unit_end - unit_begin", "unit_end_early - unit_begin");
    let (_dir, library) = victim(&text);
    assert_eq!(ask_victim(&library).0, "victim");
}

#[test]
fn functions_that_share_a_long_list_of_places_are_given_up() {
    // Twenty thousand functions, each of which lies in the same sixty thousand places.
    let abbreviation = ".uleb128 5, 0x2e; .byte 0; .uleb128 0x55, 0x17, 0, 0";
    let functions = "
.rept 20000
    .uleb128 5
    .long 0
.endr
.byte 0";
    let list = "
.section .debug_ranges,\"\",@progbits
.rept 60000
    .quad 1, 2
.endr
.quad 0, 0";
    let (_dir, library) = victim(&(unit(abbreviation, functions) + list));
    assert_eq!(ask_victim(&library), ("victim".to_owned(), false));
}
