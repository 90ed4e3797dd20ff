//! Names from real files, made by the C compiler at hand: whole, stripped, split, replaced, hostile.

mod go;
mod near;
mod separate;
mod truth;

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
use object::{Object, ObjectSymbol};
use tempfile::TempDir;

/// `outer` is exported, `hidden` is not, `within` is inlined into both.
const SOURCE: &str = "
volatile int sink;
static inline __attribute__((always_inline)) void within(int n) { sink = n * 3; }
__attribute__((noinline)) static int hidden(int n) { within(n); return sink + 1; }
__attribute__((noinline)) int outer(int n) { within(n + 1); return hidden(n) + sink; }
";

/// Each line of its output is a place in the program, a function, a file and a line.
const GO_SOURCE: &str = r#"
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

type Pool struct{ all [][]byte }

//go:noinline
func (p *Pool) Grow(size int) {
	p.all = append(p.all, make([]byte, size))
	tell()
}

//go:noinline
func tell() {
	var start uintptr
	maps, _ := os.ReadFile("/proc/self/maps")
	self, _ := os.Executable()
	for _, line := range strings.Split(string(maps), "\n") {
		if strings.HasSuffix(line, self) {
			fmt.Sscanf(line, "%x-", &start)
			break
		}
	}
	callers := make([]uintptr, 8)
	frames := runtime.CallersFrames(callers[:runtime.Callers(1, callers)])
	for {
		frame, more := frames.Next()
		fmt.Printf("%x %s %s %d\n", frame.PC-start, frame.Function, frame.File, frame.Line)
		if !more {
			break
		}
	}
}

func main() {
	pool := &Pool{}
	pool.Grow(1 << 20)
}
"#;

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

    fn build_id(&self) -> Vec<u8> {
        build_id(&self.bytes())
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
    names_from(Places::Machine, path, build_id, opened, lookups)
}

/// The same with files from elsewhere.
fn names_from(
    places: Places,
    path: &Path,
    build_id: &[u8],
    opened: Option<&Path>,
    lookups: &[u64],
) -> Vec<Name> {
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
    let names = Symboliser::new(places).name(&module, lookups);
    assert_eq!(names.len(), lookups.len());
    names
}

/// Names places in the file at `path`, whatever it is.
fn names_of(path: &Path, lookups: &[u64]) -> Vec<Name> {
    use std::os::unix::fs::MetadataExt;
    let bytes = fs::read(path).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let build_id = file
        .build_id()
        .expect("readable")
        .unwrap_or_default()
        .to_vec();
    let meta = path.metadata().expect("a file");
    let info = ModuleInfo {
        kind: ModuleKind::File,
        file: FileId(1),
        build_id,
    };
    let file = FileInfo {
        dev: device(meta.dev()),
        inode: meta.ino(),
        path: path.to_str().expect("text").to_owned(),
    };
    let module = Module {
        id: ModuleId(1),
        info: &info,
        file: &file,
        opened: None,
    };
    Symboliser::default().name(&module, lookups)
}

/// Major and minor number, as maps show them.
fn device(dev: u64) -> (u32, u32) {
    let major = ((dev >> 8) & 0xfff) | ((dev >> 32) & !0xfff);
    let minor = (dev & 0xff) | ((dev >> 12) & !0xff);
    (major as u32, minor as u32)
}

/// Compiles a program. The folder lasts as long as what comes with it.
fn new_program(compiler: &str, suffix: &str, source: &str, flags: &[&str]) -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join(format!("program.{suffix}"));
    fs::write(&file, source).expect("a file");
    let program = dir.path().join("program");
    run(Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&program)
        .arg(&file));
    (dir, program)
}

/// Compiles a Go program that prints its own stack. `None` without a Go compiler, which is told, and which CI has.
fn go_program(flags: &[&str]) -> Option<(TempDir, PathBuf)> {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI needs a Go compiler");
        eprintln!("SKIPPED: no Go compiler");
        return None;
    }
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("program.go");
    fs::write(&file, GO_SOURCE).expect("a file");
    let program = dir.path().join("program");
    run(Command::new("go")
        .arg("build")
        .args(flags)
        .env("GOCACHE", dir.path().join("cache"))
        .env("GO111MODULE", "off")
        .arg("-o")
        .arg(&program)
        .arg(&file));
    Some((dir, program))
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
fn a_file_is_read_once() {
    let library = Library::new(&["-g"]);
    let info = ModuleInfo {
        kind: ModuleKind::File,
        file: FileId(1),
        build_id: library.build_id(),
    };
    let file = FileInfo {
        dev: (0, 0),
        inode: 0,
        path: library.path.to_str().expect("text").to_owned(),
    };
    let module = Module {
        id: ModuleId(1),
        info: &info,
        file: &file,
        opened: None,
    };
    let (outer, hidden) = (library.inside("outer"), library.inside("hidden"));
    let mut symboliser = Symboliser::default();
    assert!(functions(&symboliser.name(&module, &[outer])[0]).contains(&"outer"));
    fs::remove_file(&library.path).expect("removed");
    let names = symboliser.name(&module, &[hidden, outer]);
    assert!(functions(&names[0]).contains(&"hidden") && names[0].frames[0].line.is_some());
    assert!(functions(&names[1]).contains(&"outer"));
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
        let names = names(&library.path, &id, None, &[lookup]);
        assert_eq!(functions(&names[0]).last(), Some(&"outer"));
        assert_eq!(names[0].frames[0].line.is_some(), packing == "none");
    }
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
