//! Real programs: the same output and exit code as bare, nothing lost, drift 0.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::{Recording, Run, command, have_or_skip, number, skip, testdata};

/// Runs a program bare and under both mechanisms, each time in a fresh directory, and compares what it
/// prints, its exit code, and the files named in `results`.
fn compare(program: &Command, results: &[&str]) {
    let fresh = || {
        let dir = TempDir::new().expect("a temporary directory");
        let mut here = command(program.get_program(), program.get_args());
        here.current_dir(dir.path());
        (dir, here)
    };
    let read = |dir: &Path| -> Vec<Vec<u8>> {
        results
            .iter()
            .map(|name| std::fs::read(dir.join(name)).expect("a result"))
            .collect()
    };
    let (dir, mut here) = fresh();
    let bare = Run::of(&mut here);
    let bare_results = read(dir.path());
    assert!(
        !bare.stdout.is_empty() || !results.is_empty(),
        "{here:?} does nothing: {}",
        bare.errors()
    );
    for mechanism in ["seccomp", "syscall"] {
        let (dir, here) = fresh();
        let recording = Recording::with(&["--mechanism", mechanism], &here, b"");
        assert_eq!(
            recording.run.text(),
            bare.text(),
            "{mechanism}: {}",
            recording.run.errors()
        );
        assert_eq!(
            recording.run.shell_code(),
            bare.shell_code(),
            "{mechanism}: {}",
            recording.run.errors()
        );
        assert!(
            read(dir.path()) == bare_results,
            "{mechanism}: the files differ"
        );
        recording.assert_exact();
        let info = recording.json(&["info"]);
        assert!(number(&info["events"]) > 10, "{info:#}");
    }
}

fn program(name: &str) -> String {
    testdata().join("programs").join(name).display().to_string()
}

/// A python3 that has numpy, if there is one.
pub fn python_with_numpy() -> Option<&'static str> {
    ["/usr/bin/python3", "python3"].into_iter().find(|python| {
        Command::new(python)
            .args(["-c", "import numpy"])
            .output()
            .is_ok_and(|out| out.status.success())
    })
}

#[test]
fn python3_with_numpy_and_threads() {
    let Some(python) = python_with_numpy() else {
        return skip("python3 with numpy is not installed; ./test says how");
    };
    compare(&command(python, [&program("numpy_threads.py"), "100"]), &[]);
}

#[test]
fn python3_that_starts_children() {
    let script = "import subprocess, multiprocessing as m\n\
                  print(subprocess.run(['sh', '-c', 'echo child; exit 3'], capture_output=True))\n\
                  with m.get_context('fork').Pool(3) as pool: print(pool.map(abs, range(-20, 0)))\n";
    if have_or_skip("python3") {
        compare(&command("python3", ["-c", script]), &[]);
    }
}

#[test]
fn node_with_a_worker() {
    if have_or_skip("node") {
        compare(&command("node", [program("work.js")]), &[]);
    }
}

#[test]
fn java_with_threads() {
    if have_or_skip("javac") {
        compare(&command("java", [program("Work.java")]), &[]);
    }
}

#[test]
fn sqlite3_on_a_mapped_file() {
    if have_or_skip("sqlite3") {
        compare(
            &command(
                "sqlite3",
                ["t.db", &format!(".read {}", program("work.sql"))],
            ),
            &[],
        );
    }
}

#[test]
fn gcc_compiles_the_same_object() {
    if have_or_skip("gcc") {
        compare(
            &command("gcc", ["-O2", "-c", "-o", "work.o", &program("work.c")]),
            &["work.o"],
        );
    }
}

#[test]
fn bash_with_pipes_and_jobs() {
    compare(&command("bash", [program("work.sh")]), &[]);
}

#[test]
fn a_pipeline_of_many_programs() {
    let script = "seq 1 3000 | sort -R --random-source=/dev/zero | sort -n | gzip -9n | gunzip | sha256sum; \
                  tar cf - --sort=name -C / etc/passwd 2> /dev/null | tar tf -; find /usr/bin -name 'b*' | sort | tail -n 3";
    compare(&command("bash", ["-c", script]), &[]);
}
