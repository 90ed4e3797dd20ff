//! Names from a module's own file: whole, stripped, linked to another, replaced, read once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use maptrail_replay::leaks::{Options, leaks};
use maptrail_replay::symbols::{Names, Places, Symboliser, name_log};
use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{Body, Header, Mechanism, NameSource, Record, StackNode};
use maptrail_tracelog::types::{FileId, ModuleId, Nanos, StackId, Stamp};
use maptrail_tracelog::writer::{Chunk, LogWriter};
use tempfile::TempDir;

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

/// Writes a log whose stacks 1, 2, ... are one place in the library each.
fn new_log(library: &Library, places: &[u64]) -> PathBuf {
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
    // Callers are looked up one byte before the place that they come back to.
    let node = |place| StackNode {
        parent: StackId::NONE,
        module: ModuleId(1),
        offset: place + 1,
        flags: 0,
    };
    let chunk = Chunk {
        records: records.collect(),
        nodes: places.iter().copied().map(node).collect(),
        ..Chunk::default()
    };
    let file = fs::File::create(&log).expect("a file");
    let mut writer = LogWriter::create(file, &header).expect("a log");
    writer.write_chunk(&chunk).expect("written");
    writer.finish().expect("finished");
    log
}

fn open_log(log: &Path) -> LogReader<fs::File> {
    LogReader::open(fs::File::open(log).expect("a file")).expect("a log")
}

#[test]
fn a_log_gets_the_names_that_it_lacks_and_better_ones() {
    let library = Library::new(&["-g"]);
    let log = new_log(&library, &[library.inside("outer"), 2]);
    let name = || {
        let named = name_log(&log, &Places::Machine, |_| None).expect("named");
        (named.places, named.before, named.added)
    };
    let original = library.bytes();
    library.strip();
    assert_eq!(name(), (2, 0, 1));
    assert_eq!(name(), (2, 1, 0));
    // With debug information there is more to tell.
    fs::write(&library.path, original).expect("written");
    assert_eq!(name(), (2, 1, 1));
    assert_eq!(name(), (2, 1, 0));
    let names = open_log(&log).names().expect("names");
    let last = names.last().expect("names");
    assert!(functions(last).contains(&"outer") && last.frames[0].line.is_some());
}

#[test]
fn views_take_better_names_from_a_folder_and_the_rest_from_the_log() {
    let library = Library::new(&["-g"]);
    let (outer, hidden) = (library.inside("outer"), library.inside("hidden"));
    let log = new_log(&library, &[outer, hidden]);
    let dir = TempDir::new().expect("a folder");
    fs::copy(&library.path, dir.path().join("lib.so")).expect("copied");
    let nothing = TempDir::new().expect("a folder");
    library.strip();
    let told = |places: Option<Places>| {
        let mut log = open_log(&log);
        let (_, world) = leaks(&mut log, Options::default()).expect("readable");
        let names = log.names().expect("names");
        let mut names = match places {
            Some(places) => Names::with_files(names, places),
            None => Names::from_log(names),
        };
        [1, 2].map(|stack| {
            let frames = names.stack(&world, StackId(stack), None);
            let frame = frames.last().expect("a frame");
            let near = if frame.near { "near " } else { "" };
            let line = if frame.line.is_some() {
                " with a line"
            } else {
                ""
            };
            frame
                .function
                .as_ref()
                .map_or("nothing".to_owned(), |f| format!("{near}{f}{line}"))
        })
    };
    let below = |dir: &TempDir| Some(Places::below(dir.path()).expect("a folder"));
    let [exported, neighbour] = told(Some(Places::Machine));
    assert_eq!(exported, "outer");
    assert!(neighbour.starts_with("near ") || neighbour == "nothing");
    assert_eq!(told(None), ["nothing", "nothing"]);
    assert_eq!(told(below(&nothing)), ["nothing", "nothing"]);
    name_log(&log, &Places::Machine, |_| None).expect("named");
    let logged = [exported, neighbour];
    for places in [None, Some(Places::Machine), below(&nothing)] {
        assert_eq!(told(places), logged);
    }
    let whole = ["outer with a line", "hidden with a line"];
    assert_eq!(told(below(&dir)), whole);
    name_log(&log, &below(&dir).expect("places"), |_| None).expect("named");
    assert_eq!(told(None), whole);
}
