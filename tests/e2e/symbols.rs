//! A log without names gets them later, on another machine, from a folder with the files that ran.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::truth::{functions, stacks};
use crate::common::{Run, command, json, maptrail, recorded, victim};

/// The functions of the stack that holds most.
fn named(leaks: &Value) -> Vec<String> {
    let worst = stacks(leaks).first().expect("a stack");
    functions(worst).map(str::to_owned).collect()
}

/// Puts a file below `dir`, where it lies below the root.
fn copy_into(dir: &Path, file: &Path) {
    let to = dir.join(file.strip_prefix("/").expect("an absolute path"));
    fs::create_dir_all(to.parent().expect("a folder")).expect("it is made");
    fs::copy(file, to).expect("a copy");
}

#[test]
fn names_come_later_from_a_folder() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let program = fs::canonicalize(victim("raw_leak")).expect("it is built");
    let leaking = command(&program, ["200", "4096", "10", "2"]);
    let run = Run::of(&mut recorded(&["--symbols", "none"], &log, &leaking));
    assert_eq!(run.code(), 0, "{}", run.errors());

    let (empty, full) = (dir.path().join("empty"), dir.path().join("full"));
    fs::create_dir(&empty).expect("a folder");
    copy_into(&full, &program);
    let leaks = |symfs: &Path| {
        let symfs = symfs.to_str().expect("a path in UTF-8");
        json(&log, &["leaks", "--symfs", symfs])
    };
    // The files of this machine are not asked, although they are the ones.
    assert_eq!(named(&leaks(&empty)), [""; 0]);
    let found = named(&leaks(&full));
    let mut outwards = found.iter();
    for function in ["leak_raw", "decode_frame", "main"] {
        assert!(outwards.any(|f| f == function), "{found:?}");
    }

    // Put into the log they need no files any more.
    let symbolize = |symfs: &Path| {
        let mut symbolize = maptrail();
        symbolize
            .arg("symbolize")
            .arg(&log)
            .arg("--symfs")
            .arg(symfs);
        let run = Run::of(&mut symbolize);
        assert_eq!(run.code(), 0, "{}", run.errors());
        fs::read(&log).expect("the log")
    };
    let once = symbolize(&full);
    assert_eq!(named(&leaks(&empty)), found);
    assert!(once == symbolize(&full), "done twice it is as done once");
}

#[test]
fn a_folder_with_another_program_of_that_name_names_nothing() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let program = fs::canonicalize(victim("raw_leak")).expect("it is built");
    let leaking = command(&program, ["200", "4096", "10", "2"]);
    Run::of(&mut recorded(&["--symbols", "none"], &log, &leaking));
    let full = dir.path().join("full");
    copy_into(&full, &program);
    let inside = full.join(program.strip_prefix("/").expect("an absolute path"));
    fs::copy(victim("churn"), &inside).expect("a copy");
    let symfs = full.to_str().expect("a path in UTF-8");
    let leaks = json(&log, &["leaks", "--symfs", symfs]);
    assert_eq!(named(&leaks), [""; 0], "{leaks:#}");
}
