//! Debug information that lies elsewhere: by build id, by link, in packages; here or below a folder.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use lzma_rust2::{XzOptions, XzWriter};
use maptrail_replay::symbols::Places;
use maptrail_tracelog::record::{Name, NameSource};
use object::Object;
use tempfile::TempDir;

use crate::{Library, functions, names, names_from, new_program, run};

/// A stripped library, and its debug information in a file of its own.
struct Split {
    library: Library,
    debug: PathBuf,
    hidden: u64,
}

impl Split {
    fn new() -> Split {
        let library = Library::new(&["-g"]);
        let hidden = library.inside("hidden");
        let debug = library.dir.path().join("separate");
        objcopy(&["--only-keep-debug"], &library.path, &debug);
        library.strip();
        Split {
            library,
            debug,
            hidden,
        }
    }

    /// Has the library refer to the debug information by a name.
    fn link(&self, name: &str) {
        // objcopy takes the last part of a path: the name is written over one as long.
        let stand_in = self.library.dir.path().join("x".repeat(name.len()));
        fs::copy(&self.debug, &stand_in).expect("copied");
        let link = format!("--add-gnu-debuglink={}", stand_in.display());
        let with_link = self.library.dir.path().join("with_link");
        objcopy(&[&link], &self.library.path, &with_link);
        fs::remove_file(&stand_in).expect("removed");
        let mut bytes = fs::read(&with_link).expect("a file");
        let pattern = "x".repeat(name.len()).into_bytes();
        let at = bytes.windows(pattern.len()).position(|w| w == pattern);
        let at = at.expect("the name");
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        fs::write(&self.library.path, bytes).expect("written");
    }

    fn is_named(&self, places: Places) -> bool {
        let library = &self.library;
        let names = names_from(places, &library.path, &library.build_id(), &[self.hidden]);
        is_hidden(&names)
    }

    /// The path of the debug information by build id.
    fn by_build_id(&self) -> String {
        let id: String = self
            .library
            .build_id()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        format!(".build-id/{}/{}.debug", &id[..2], &id[2..])
    }
}

/// Whether it names `hidden`, with a line.
fn is_hidden(names: &[Name]) -> bool {
    functions(&names[0]).last() == Some(&"hidden") && names[0].frames[0].line.is_some()
}

fn objcopy(arguments: &[&str], from: &Path, to: &Path) {
    run(Command::new("objcopy").args(arguments).arg(from).arg(to));
}

/// Copies a file to a path below a folder.
fn put(file: &Path, below: &Path, path: impl AsRef<Path>) {
    let path = path.as_ref();
    let to = below.join(path.strip_prefix("/").unwrap_or(path));
    fs::create_dir_all(to.parent().expect("a folder")).expect("made");
    fs::copy(file, to).expect("copied");
}

fn below(dir: &TempDir) -> Places {
    Places::below(dir.path()).expect("a folder")
}

#[test]
fn below_a_folder_debug_information_is_found_by_build_id() {
    let split = Split::new();
    assert!(!split.is_named(Places::Machine));
    for way in ["usr/lib/debug/", ""] {
        let dir = TempDir::new().expect("a folder");
        assert!(!split.is_named(below(&dir)));
        put(
            &split.debug,
            dir.path(),
            format!("{way}{}", split.by_build_id()),
        );
        assert!(split.is_named(below(&dir)), "{way}");
        // What lies there has another build id.
        let other = Library::new(&["-g", "-DOTHER"]);
        put(
            &other.path,
            dir.path(),
            format!("{way}{}", split.by_build_id()),
        );
        assert!(!split.is_named(below(&dir)), "{way}");
    }
}

#[test]
fn below_a_folder_modules_are_found_by_path_and_by_name_and_nowhere_else() {
    let library = Library::new(&["-g"]);
    let (lookup, id) = (library.inside("hidden"), library.build_id());
    let is_named = |dir: &TempDir, id: &[u8]| {
        let names = names_from(below(dir), &library.path, id, &[lookup]);
        is_hidden(&names)
    };
    let (by_path, by_name, empty) = (
        TempDir::new().expect("a folder"),
        TempDir::new().expect("a folder"),
        TempDir::new().expect("a folder"),
    );
    put(&library.path, by_path.path(), &library.path);
    put(&library.path, by_name.path(), "lib.so");
    assert!(is_named(&by_path, &id) && is_named(&by_name, &id));
    // The file is on this machine. It was not asked for.
    assert!(!is_named(&empty, &id));
    symlink(&library.path, empty.path().join("lib.so")).expect("a link");
    assert!(!is_named(&empty, &id), "the link leads out of the folder");
    let mut other = id.clone();
    other[0] ^= 1;
    assert!(!is_named(&by_path, &other) && !is_named(&by_name, &other));
    // Without build ids the path is all there is.
    objcopy(
        &["--remove-section=.note.gnu.build-id"],
        &library.path,
        &library.dir.path().join("plain"),
    );
    put(
        &library.dir.path().join("plain"),
        by_path.path(),
        &library.path,
    );
    put(&library.dir.path().join("plain"), by_name.path(), "lib.so");
    assert!(is_named(&by_path, &[]) && !is_named(&by_name, &[]));
}

#[test]
fn what_is_no_folder_is_refused() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    assert!(Places::below(&file).is_err());
    assert!(Places::below(&dir.path().join("nothing")).is_err());
}

#[test]
fn a_link_is_followed_to_where_debug_information_belongs() {
    for folder in ["", ".debug"] {
        let split = Split::new();
        split.link("lib.debug");
        assert!(!split.is_named(Places::Machine));
        put(
            &split.debug,
            split.library.dir.path(),
            Path::new(folder).join("lib.debug"),
        );
        assert!(split.is_named(Places::Machine), "{folder}");
    }
    let split = Split::new();
    split.link("lib.debug");
    let dir = TempDir::new().expect("a folder");
    put(&split.library.path, dir.path(), &split.library.path);
    let folder = split
        .library
        .dir
        .path()
        .strip_prefix("/")
        .expect("absolute");
    put(
        &split.debug,
        dir.path(),
        Path::new("usr/lib/debug").join(folder).join("lib.debug"),
    );
    assert!(split.is_named(below(&dir)));
}

#[test]
fn a_link_to_something_else_is_not_believed() {
    let split = Split::new();
    split.link("lib.debug");
    let at = split.library.dir.path().join("lib.debug");
    // The same build, and another checksum.
    let mut bytes = fs::read(&split.debug).expect("a file");
    bytes.push(0);
    fs::write(&at, bytes).expect("written");
    assert!(!split.is_named(Places::Machine));
    // A pipe that nobody writes to: opening it would wait for ever.
    fs::remove_file(&at).expect("removed");
    run(Command::new("mkfifo").arg(&at));
    assert!(!split.is_named(Places::Machine));
    for bad in ["../lib.debug", "sub/lib.debug", "/tmp/lib.debug", "..", "."] {
        let split = Split::new();
        split.link(bad);
        let dir = split.library.dir.path();
        if bad.len() > 2 && !bad.starts_with('/') {
            let to = dir.join(bad);
            fs::create_dir_all(to.parent().expect("a folder")).expect("made");
            fs::copy(&split.debug, &to).expect("copied");
            assert!(!split.is_named(Places::Machine), "{bad}");
            fs::remove_file(to).expect("removed");
        }
        assert!(!split.is_named(Places::Machine), "{bad}");
    }
}

#[test]
fn a_package_beside_the_file_has_what_was_split_off() {
    let source = "
volatile int sink;
static inline __attribute__((always_inline)) void within(int n) { sink = n * 3; }
__attribute__((noinline)) int outer(int n) { within(n); return sink; }
int main(int count, char **argv) { return outer(count); }
";
    // The packager of binutils reads DWARF 4.
    let flags = ["-O1", "-gsplit-dwarf", "-gdwarf-4", "-Wl,--build-id"];
    let (dir, program) = new_program("cc", "c", source, &flags);
    let bytes = fs::read(&program).expect("a file");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let id = file.build_id().expect("readable").expect("one").to_vec();
    let start = crate::inside(&bytes, "outer") - 5;
    let places: Vec<u64> = (start..start + 16).collect();
    let is_whole = |path: &Path| {
        let names = names(path, &id, &places);
        names.iter().any(|n| functions(n) == ["within", "outer"])
    };
    assert!(!is_whole(&program), "the greater part is elsewhere");
    let package = dir.path().join("program.dwp");
    run(Command::new("dwp")
        .arg("-e")
        .arg(&program)
        .arg("-o")
        .arg(&package));
    assert!(is_whole(&program));
    // The same with the rest of it in a separate file, too.
    let debug = dir.path().join("program.debug");
    objcopy(&["--only-keep-debug"], &program, &debug);
    run(Command::new("objcopy").current_dir(dir.path()).args([
        "--strip-all",
        "--add-gnu-debuglink=program.debug",
        "program",
    ]));
    assert!(is_whole(&program));
    fs::rename(&package, dir.path().join("program.debug.dwp")).expect("renamed");
    assert!(is_whole(&program));
    fs::remove_file(dir.path().join("program.debug.dwp")).expect("removed");
    assert!(!is_whole(&program));
}

/// Two files whose debug information has parts in common, in a third.
#[test]
fn what_debug_files_share_is_read_where_such_files_are() {
    if Command::new("dwz").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI needs dwz");
        eprintln!("SKIPPED: no dwz");
        return;
    }
    let dir = TempDir::new().expect("a folder");
    let header = "
volatile int sink;
struct pool_with_a_name { int first_member, second_member; struct pool_with_a_name *next; };
static inline __attribute__((always_inline)) void within(struct pool_with_a_name *pool, int number) {
    sink = number * 3;
    pool->first_member = number;
}
__attribute__((noinline)) int outer(struct pool_with_a_name *pool, int number) {
    within(pool, number);
    return sink;
}";
    fs::write(dir.path().join("common.h"), header).expect("written");
    let mut dwz = Command::new("dwz");
    dwz.current_dir(dir.path())
        .args(["-m", "shared", "-M", "/usr/lib/debug/.dwz/shared"]);
    for name in ["a", "b"] {
        let source = dir.path().join(format!("{name}.c"));
        let text = format!(
            "#include \"common.h\"\nint in_{name}(struct pool_with_a_name *p) {{ return outer(p, 3); }}"
        );
        fs::write(&source, text).expect("written");
        let library = dir.path().join(format!("{name}.so"));
        run(Command::new("cc")
            .args([
                "-g",
                "-gdwarf-4",
                "-O1",
                "-shared",
                "-fPIC",
                "-Wl,--build-id",
                "-o",
            ])
            .arg(&library)
            .arg(&source));
        let debug = format!("{name}.debug");
        objcopy(&["--only-keep-debug"], &library, &dir.path().join(&debug));
        dwz.arg(debug);
    }
    run(&mut dwz);
    let library = dir.path().join("a.so");
    let bytes = fs::read(&library).expect("a file");
    let start = crate::inside(&bytes, "outer") - 5;
    run(Command::new("strip").arg(&library));
    let id = crate::build_id(&bytes);
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let places: Vec<u64> = (start..start + 12).collect();
    let root = TempDir::new().expect("a folder");
    let debug = format!("usr/lib/debug/.build-id/{}/{}.debug", &hex[..2], &hex[2..]);
    put(&dir.path().join("a.debug"), root.path(), debug);
    let knows_inlined = || {
        let names = names_from(below(&root), &library, &id, &places);
        names.iter().any(|n| functions(n) == ["within", "outer"])
    };
    assert!(!knows_inlined());
    put(
        &dir.path().join("shared"),
        root.path(),
        "usr/lib/debug/.dwz/shared",
    );
    assert!(knows_inlined());
    // Another file than the one that was meant.
    put(&library, root.path(), "usr/lib/debug/.dwz/shared");
    assert!(!knows_inlined());
}

/// The library with a small symbol table of what it does not export, as GDB's manual makes one.
#[test]
fn a_small_symbol_table_inside_of_the_file_names_what_is_not_exported() {
    let split = Split::new();
    let dir = split.library.dir.path();
    let (mini, packed) = (dir.join("mini"), dir.join("mini.xz"));
    let options = ["-S", "--keep-symbol=hidden", "--remove-section=.comment"];
    objcopy(&options, &split.debug, &mini);
    let mut writer = XzWriter::new(Vec::new(), XzOptions::default()).expect("a packer");
    let bytes = fs::read(&mini).expect("a file");
    writer.write_all(&bytes).expect("packed");
    let add = |packed: &Path, bytes: &[u8]| {
        fs::write(packed, bytes).expect("written");
        let add = format!("--add-section=.gnu_debugdata={}", packed.display());
        run(Command::new("objcopy")
            .args(["--remove-section=.gnu_debugdata", &add])
            .arg(&split.library.path));
        let id = split.library.build_id();
        let names = names(&split.library.path, &id, &[split.hidden]);
        (functions(&names[0]).concat(), names[0].source)
    };
    let mut bytes = writer.finish().expect("packed");
    let named = ("hidden".to_owned(), NameSource::Symbols);
    assert_eq!(add(&packed, &bytes), named);
    for at in (0..bytes.len()).step_by(7) {
        bytes[at] ^= 0x15;
        add(&packed, &bytes);
        bytes[at] ^= 0x15;
    }
    bytes.truncate(bytes.len() / 2);
    assert_ne!(add(&packed, &bytes), named);
    let mut mountain = XzWriter::new(Vec::new(), XzOptions::default()).expect("a packer");
    mountain.write_all(&vec![0; 4 << 20]).expect("packed");
    assert_ne!(add(&packed, &mountain.finish().expect("packed")), named);
}
