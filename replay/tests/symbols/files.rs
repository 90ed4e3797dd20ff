//! Names from a module's own file: whole, stripped, linked to another, replaced, read once.

use std::fs;
use std::path::Path;
use std::process::Command;

use maptrail_replay::symbols::{Places, Symboliser, name_log};
use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{Body, Header, Mechanism, NameSource, Record, StackNode};
use maptrail_tracelog::types::{FileId, ModuleId, Nanos, StackId, Stamp};
use maptrail_tracelog::writer::{Chunk, LogWriter};

use crate::{Library, Logged, build_id, functions, names, run};

#[test]
fn debug_information_gives_inlined_functions_files_and_lines() {
    for flags in [&["-g"][..], &["-g", "-gz"], &["-g", "-gdwarf-4"]] {
        let library = Library::new(flags);
        let start = library.inside("outer");
        let lookups: Vec<u64> = (start..start + 24).collect();
        let names = names(&library.path, &build_id(&library.bytes()), &lookups);
        let inlined = names.iter().find(|n| functions(n) == ["within", "outer"]);
        let name = inlined.unwrap_or_else(|| panic!("{flags:?}: nothing inlined in {names:?}"));
        assert_eq!(name.source, NameSource::Symbols);
        for (frame, line) in name.frames.iter().zip([3, 5]) {
            assert!(
                frame.file.as_deref().is_some_and(|f| f.ends_with("lib.c")),
                "{frame:?}"
            );
            assert_eq!(frame.line, Some(line), "{frame:?}");
        }
    }
}

#[test]
fn a_stripped_file_names_what_it_exports_and_admits_to_the_rest() {
    let library = Library::new(&[]);
    let (outer, hidden) = (library.inside("outer"), library.inside("hidden"));
    library.strip();
    let id = build_id(&library.bytes());
    let names = names(&library.path, &id, &[outer, hidden, 1]);
    assert_eq!(
        (functions(&names[0]), names[0].source),
        (vec!["outer"], NameSource::Symbols)
    );
    assert_ne!(functions(&names[1]), ["hidden"], "it has no such name");
    assert!(names[1].frames.is_empty() || names[1].source == NameSource::Dynamic);
    assert!(names[2].frames.is_empty(), "nothing is exported below");
}

#[test]
fn a_debug_link_is_followed() {
    let library = Library::new(&["-g"]);
    let lookup = library.inside("hidden");
    let debug = library.dir.path().join("lib.debug");
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(&library.path)
        .arg(&debug));
    library.strip();
    run(Command::new("objcopy")
        .current_dir(library.dir.path())
        .arg("--add-gnu-debuglink=lib.debug")
        .arg(&library.path));
    let names = names(&library.path, &build_id(&library.bytes()), &[lookup]);
    assert!(functions(&names[0]).contains(&"hidden"), "{names:?}");
}

#[test]
fn only_the_file_that_ran_is_believed() {
    let library = Library::new(&["-g"]);
    let (lookup, id) = (library.inside("outer"), build_id(&library.bytes()));
    let knows_outer = |id: &[u8], opened: Option<&Path>| {
        let mut logged = Logged::new(&library.path, id);
        logged.opened = opened.map(Path::to_owned);
        let names = logged.name(&mut Symboliser::default(), &[lookup]);
        functions(&names[0]).contains(&"outer")
    };
    assert!(knows_outer(&id, None));
    let mut other = id.clone();
    other[0] ^= 1;
    assert!(!knows_outer(&other, None));
    // Without a build id in the log, one in the file is no proof.
    assert!(!knows_outer(&[], None));
    // The file was replaced; a descriptor of the first one was kept.
    let kept = library.dir.path().join("kept");
    fs::rename(&library.path, &kept).expect("renamed");
    fs::write(&library.path, b"something else").expect("written");
    assert!(!knows_outer(&id, None));
    assert!(knows_outer(&id, Some(&kept)));
}

#[test]
fn a_file_is_read_once() {
    let library = Library::new(&["-g"]);
    let logged = Logged::new(&library.path, &library.build_id());
    let (outer, hidden) = (library.inside("outer"), library.inside("hidden"));
    let mut symboliser = Symboliser::default();
    assert!(functions(&logged.name(&mut symboliser, &[outer])[0]).contains(&"outer"));
    fs::remove_file(&library.path).expect("removed");
    let names = logged.name(&mut symboliser, &[hidden, outer]);
    assert!(functions(&names[0]).contains(&"hidden") && names[0].frames[0].line.is_some());
    assert!(functions(&names[1]).contains(&"outer"));
}

#[test]
fn a_log_gets_the_names_that_it_lacks_and_better_ones() {
    let library = Library::new(&["-g"]);
    let log = library.dir.path().join("log");
    let header = Header {
        writer: "0".into(),
        host: String::new(),
        kernel: String::new(),
        command: Vec::new(),
        mechanism: Mechanism::Syscall,
        wall_start_ns: 0,
        monotonic_start_ns: 0,
        page_size: 4096,
    };
    let logged = Logged::new(&library.path, &library.build_id());
    let bodies = [
        Body::File(FileId(1), logged.file),
        Body::Module(ModuleId(1), logged.info),
    ];
    let records = (1..).zip(bodies).map(|(stamp, body)| Record {
        stamp: Stamp(stamp),
        ns: Nanos(0),
        body,
    });
    let node = |offset| StackNode {
        parent: StackId(0),
        module: ModuleId(1),
        offset,
        flags: 0,
    };
    let chunk = Chunk {
        records: records.collect(),
        nodes: vec![node(library.inside("outer") + 1), node(3)],
        ..Chunk::default()
    };
    let mut writer =
        LogWriter::create(fs::File::create(&log).expect("a file"), &header).expect("a log");
    writer.write_chunk(&chunk).expect("written");
    writer.finish().expect("finished");
    let name = |places: &Places| {
        let named = name_log(&log, places, |_| None).expect("named");
        (named.places, named.before, named.added)
    };
    let original = library.bytes();
    library.strip();
    assert_eq!(name(&Places::Machine), (2, 0, 1));
    assert_eq!(name(&Places::Machine), (2, 1, 0));
    // With debug information there is more to tell.
    fs::write(&library.path, original).expect("written");
    assert_eq!(name(&Places::Machine), (2, 1, 1));
    assert_eq!(name(&Places::Machine), (2, 1, 0));
    let mut reader = LogReader::open(fs::File::open(&log).expect("a file")).expect("a log");
    let names = reader.names().expect("names");
    let last = names.last().expect("names");
    assert!(functions(last).contains(&"outer") && last.frames[0].line.is_some());
}
