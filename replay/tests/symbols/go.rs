//! Go programs know their functions, files and lines, stripped or not: they print them here themselves.

use std::fs;
use std::path::Path;
use std::process::Command;

use maptrail_tracelog::record::{NameSource, NamedFrame};

use object::{Object, ObjectSegment};

use crate::{go_program, names_of};

/// What the program tells of itself: places, and the frames there.
fn told(program: &Path) -> Vec<(u64, NamedFrame)> {
    let bytes = fs::read(program).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let base = file.segments().map(|s| s.address()).min();
    let base = base.expect("segments");
    let output = Command::new(program).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let told = text.lines().map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let frame = NamedFrame {
            function: fields[1].to_owned(),
            file: Some(fields[2].to_owned()),
            line: Some(fields[3].parse().expect("a line")),
        };
        let place = u64::from_str_radix(fields[0], 16).expect("a place");
        (base + place, frame)
    });
    told.collect()
}

#[test]
fn go_programs_are_named_stripped_or_not() {
    for flags in [
        &[][..],
        &["-ldflags=-s -w"],
        &["-ldflags=-s -w", "-buildmode=pie"],
    ] {
        let Some((_dir, program)) = go_program(flags) else {
            return;
        };
        let told = told(&program);
        assert!(told.len() >= 4, "{flags:?}: {told:?}");
        let places: Vec<u64> = told.iter().map(|(place, _)| *place).collect();
        for ((place, frame), name) in told.iter().zip(names_of(&program, &places)) {
            assert_eq!(name.source, NameSource::Symbols);
            assert_eq!(name.frames.last(), Some(frame), "{flags:?} at {place:#x}");
        }
    }
}
