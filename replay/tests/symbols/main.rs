//! Names from real files, made by the C compiler at hand: whole, stripped, split, replaced, hostile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use maptrail_replay::symbols::{Module, Places, Symboliser, name_log};
use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::record::{
    Body, FileInfo, Header, Mechanism, ModuleInfo, ModuleKind, Name, NameSource, Record, StackNode,
};
use maptrail_tracelog::types::{FileId, ModuleId, Nanos, StackId, Stamp};
use maptrail_tracelog::writer::{Chunk, LogWriter};
use object::{Object, ObjectSection, ObjectSymbol};
use tempfile::TempDir;

/// `outer` is exported, `hidden` is not, `within` is inlined into both.
const SOURCE: &str = "
volatile int sink;
static inline __attribute__((always_inline)) void within(int n) { sink = n * 3; }
__attribute__((noinline)) static int hidden(int n) { within(n); return sink + 1; }
__attribute__((noinline)) int outer(int n) { within(n + 1); return hidden(n) + sink; }
";

/// A shared library.
struct Library {
    dir: TempDir,
    path: PathBuf,
}

impl Library {
    fn new(flags: &[&str]) -> Library {
        let dir = TempDir::new().expect("a folder");
        let (source, path) = (dir.path().join("lib.c"), dir.path().join("lib.so"));
        fs::write(&source, SOURCE).expect("a file");
        run(Command::new("cc")
            .args(flags)
            .args(["-O1", "-fPIC", "-shared", "-Wl,--build-id", "-o"])
            .arg(&path)
            .arg(&source));
        Library { dir, path }
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).expect("a library")
    }

    fn strip(&self) {
        run(Command::new("strip").arg(&self.path));
    }

    /// An address inside of a function, past its first instruction.
    fn inside(&self, function: &str) -> u64 {
        inside(&self.bytes(), function)
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("the C tools are installed");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn inside(elf: &[u8], function: &str) -> u64 {
    let file = object::File::parse(elf).expect("an ELF file");
    let mut symbols = file.symbols().chain(file.dynamic_symbols());
    let symbol = symbols.find(|s| s.name() == Ok(function));
    symbol.expect("the function").address() + 5
}

fn build_id(elf: &[u8]) -> Vec<u8> {
    let file = object::File::parse(elf).expect("an ELF file");
    file.build_id()
        .expect("readable")
        .expect("a build id")
        .to_vec()
}

/// Names `lookups` in the file at `path`, which is said to have `build_id`.
fn names(path: &Path, build_id: &[u8], opened: Option<&Path>, lookups: &[u64]) -> Vec<Name> {
    let info = ModuleInfo {
        kind: ModuleKind::File,
        file: FileId(1),
        build_id: build_id.to_vec(),
    };
    let file = FileInfo {
        dev: (0, 0),
        inode: 0,
        path: path.to_str().expect("text").to_owned(),
    };
    let module = Module {
        id: ModuleId(1),
        info: &info,
        file: &file,
        opened: opened.map(Path::to_owned),
    };
    let names = Symboliser::default().name(&module, lookups);
    assert_eq!(names.len(), lookups.len());
    names
}

fn functions(name: &Name) -> Vec<&str> {
    name.frames.iter().map(|f| f.function.as_str()).collect()
}

fn name_outer(path: &Path, build_id: &[u8], opened: Option<&Path>, lookup: u64) -> bool {
    let names = names(path, build_id, opened, &[lookup]);
    names.iter().all(|n| functions(n).contains(&"outer"))
}

#[test]
fn debug_information_gives_inlined_functions_files_and_lines() {
    for flags in [&["-g"][..], &["-g", "-gz"], &["-g", "-gdwarf-4"]] {
        let library = Library::new(flags);
        let start = library.inside("outer");
        let lookups: Vec<u64> = (start..start + 24).collect();
        let names = names(&library.path, &build_id(&library.bytes()), None, &lookups);
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
    let names = names(&library.path, &id, None, &[outer, hidden, 1]);
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
    let names = names(&library.path, &build_id(&library.bytes()), None, &[lookup]);
    assert!(functions(&names[0]).contains(&"hidden"), "{names:?}");
}

#[test]
fn only_the_file_that_ran_is_believed() {
    let library = Library::new(&["-g"]);
    let (lookup, id) = (library.inside("outer"), build_id(&library.bytes()));
    assert!(name_outer(&library.path, &id, None, lookup));
    let mut other = id.clone();
    other[0] ^= 1;
    assert!(!name_outer(&library.path, &other, None, lookup));
    // Without a build id in the log, one in the file is no proof.
    assert!(!name_outer(&library.path, &[], None, lookup));
    // The file was replaced; a descriptor of the first one was kept.
    let kept = library.dir.path().join("kept");
    fs::rename(&library.path, &kept).expect("renamed");
    fs::write(&library.path, b"something else").expect("written");
    assert!(!name_outer(&library.path, &id, None, lookup));
    assert!(name_outer(&library.path, &id, Some(&kept), lookup));
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let dir = TempDir::new().expect("a folder");
    for path in [
        dir.path(),
        Path::new("/dev/zero"),
        Path::new("relative/lib.so"),
    ] {
        assert!(
            names(path, &[1; 20], Some(path), &[0x1000])[0]
                .frames
                .is_empty()
        );
    }
    // A pipe that nobody writes to: opening it would wait for ever.
    let pipe = dir.path().join("pipe");
    run(Command::new("mkfifo").arg(&pipe));
    assert!(
        names(&pipe, &[1; 20], Some(&pipe), &[0x1000])[0]
            .frames
            .is_empty()
    );
}

#[test]
fn a_section_that_claims_the_moon_is_left_packed() {
    let library = Library::new(&["-g", "-gz"]);
    let mut bytes = library.bytes();
    let (lookup, id) = (library.inside("outer"), build_id(&bytes));
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let packed = file.sections().filter(|s| {
        s.compressed_file_range()
            .is_ok_and(|r| r.format != object::CompressionFormat::None)
    });
    let starts: Vec<usize> = packed
        .filter_map(|s| s.file_range())
        .map(|(at, _)| at as usize)
        .collect();
    assert!(!starts.is_empty(), "the compiler packed nothing");
    for at in starts {
        // `ch_size` of Elf64_Chdr.
        bytes[at + 8..at + 16].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    }
    fs::write(&library.path, &bytes).expect("written");
    // Its symbol table still serves.
    let names = names(&library.path, &id, None, &[lookup]);
    assert_eq!(functions(&names[0]), ["outer"]);
    assert_eq!(names[0].frames[0].line, None);
}

#[test]
fn damaged_files_do_no_harm() {
    let library = Library::new(&["-g"]);
    let good = library.bytes();
    let (lookup, id) = (library.inside("outer"), build_id(&good));
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let mut still_named = 0;
    for _ in 0..400 {
        let mut bad = good.clone();
        for _ in 0..1 + next(12) {
            let at = next(bad.len());
            bad[at] = next(256) as u8;
        }
        bad.truncate(if next(4) == 0 {
            next(good.len())
        } else {
            good.len()
        });
        fs::write(&library.path, &bad).expect("written");
        let lookups = [0, lookup, lookup + 7, u64::MAX];
        let names = names(&library.path, &id, None, &lookups);
        still_named += usize::from(functions(&names[1]).contains(&"outer"));
    }
    assert!(
        still_named > 100,
        "only {still_named} were read at all: the damage is too great to test"
    );
}

#[test]
fn names_are_added_to_a_log_once() {
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
    let file = FileInfo {
        dev: (0, 0),
        inode: 0,
        path: library.path.to_str().expect("text").to_owned(),
    };
    let module = ModuleInfo {
        kind: ModuleKind::File,
        file: FileId(1),
        build_id: build_id(&library.bytes()),
    };
    let bodies = [
        Body::File(FileId(1), file),
        Body::Module(ModuleId(1), module),
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
    let first = name_log(&log, &Places::Machine, |_| None).expect("named");
    assert_eq!((first.places, first.named), (2, 1));
    let again = name_log(&log, &Places::Machine, |_| None).expect("named");
    assert_eq!((again.places, again.named), (1, 0));
    let mut reader = LogReader::open(fs::File::open(&log).expect("a file")).expect("a log");
    let names = reader.names().expect("names");
    assert_eq!(names.len(), 1);
    assert!(functions(&names[0]).contains(&"outer"));
}
