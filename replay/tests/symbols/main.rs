//! Names from real files, made by the compilers at hand: whole, stripped, split, replaced, hostile.

mod files;
mod go;
mod hostile;
mod near;
mod separate;
mod truth;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use maptrail_replay::symbols::{Module, Places, Symboliser};
use maptrail_tracelog::record::{FileInfo, ModuleInfo, ModuleKind, Name};
use maptrail_tracelog::types::{FileId, ModuleId};
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

/// What a log says of a module.
struct Logged {
    info: ModuleInfo,
    file: FileInfo,
    opened: Option<PathBuf>,
}

impl Logged {
    /// One at `path`, with a build id.
    fn new(path: &Path, build_id: &[u8]) -> Logged {
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
        Logged {
            info,
            file,
            opened: None,
        }
    }

    fn name(&self, symboliser: &mut Symboliser, lookups: &[u64]) -> Vec<Name> {
        let module = Module {
            id: ModuleId(1),
            info: &self.info,
            file: &self.file,
            opened: self.opened.clone(),
        };
        let names = symboliser.name(&module, lookups);
        assert_eq!(names.len(), lookups.len());
        names
    }
}

/// Names places in the file at `path`, which is said to have `build_id`, with files from `places`.
fn names_from(places: Places, path: &Path, build_id: &[u8], lookups: &[u64]) -> Vec<Name> {
    Logged::new(path, build_id).name(&mut Symboliser::new(places), lookups)
}

/// The same with files from this machine.
fn names(path: &Path, build_id: &[u8], lookups: &[u64]) -> Vec<Name> {
    names_from(Places::Machine, path, build_id, lookups)
}

/// Names places in the file at `path`, whatever it is.
fn names_of(path: &Path, lookups: &[u64]) -> Vec<Name> {
    use std::os::unix::fs::MetadataExt;
    let bytes = fs::read(path).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let build_id = file.build_id().expect("readable").unwrap_or_default();
    let mut logged = Logged::new(path, build_id);
    let meta = path.metadata().expect("a file");
    (logged.file.dev, logged.file.inode) = (device(meta.dev()), meta.ino());
    logged.name(&mut Symboliser::default(), lookups)
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
