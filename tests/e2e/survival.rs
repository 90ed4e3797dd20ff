//! A log survives: the recorder killed at any moment, a full disk, a cut file, flipped bytes.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::truth::Truth;
use crate::common::{
    Recording, Run, command, finish, is_root, json, maptrail, number, recorded, skip, until,
    victim, victim_command,
};

/// The process that traces a child of ours running `program`, or one of its descendants that does.
fn tracer_of(program: &Path) -> Option<Pid> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let exe = fs::read_link(entry.path().join("exe")).ok()?;
        if exe != program {
            return None;
        }
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"))?;
        match tracer.trim().parse() {
            Ok(0) | Err(_) => None,
            Ok(pid) => Some(Pid::from_raw(pid)),
        }
    })
}

/// A copy of a victim under a path of its own, so that its process can be told from others.
fn own_copy(name: &str, dir: &Path) -> std::path::PathBuf {
    let copy = dir.join(name);
    fs::copy(victim(name), &copy).expect("a copy");
    copy.canonicalize().expect("a path")
}

/// Starts a recording that would go on for very long.
fn start_endless(dir: &Path) -> (Child, std::path::PathBuf) {
    let program = own_copy("raw_leak", dir);
    let child = recorded(
        &[],
        &dir.join("log"),
        &command(&program, ["100000000", "4096", "50", "4"]),
    )
    .stdin(Stdio::null())
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .expect("maptrail starts");
    (child, program)
}

/// Every command on a log ends by an exit code of its own, without a panic. Returns `info`, if it is a log.
pub fn reads(log: &Path) -> Option<Value> {
    for args in [
        &["info"][..],
        &["verify"],
        &["leaks"],
        &["maps"],
        &["timeline"],
        &["events"],
        &["events", "--format", "json"],
    ] {
        let run = Run::of(maptrail().arg(args[0]).arg(log).args(&args[1..]));
        let said = run.errors();
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        assert!([0, 1, 2].contains(&run.code()), "{args:?}: {said}");
        assert!(run.code() != 1 || args[0] == "verify", "{args:?}: {said}");
    }
    let run = Run::of(maptrail().arg("info").arg(log).arg("--json"));
    (run.code() == 0).then(|| serde_json::from_slice(&run.stdout).expect("JSON"))
}

#[test]
fn what_was_flushed_before_a_sigkill_reads_back() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let (mut child, program) = start_endless(dir.path());
    let events = |log: &Path| {
        let run = Run::of(maptrail().arg("info").arg(log).arg("--json"));
        serde_json::from_slice::<Value>(&run.stdout)
            .ok()
            .and_then(|info| info["events"].as_u64())
    };
    // The log is read while it is being written: only what has been flushed counts.
    let flushed = until("events are flushed", || events(&log).filter(|&n| n > 1000));
    let tracer = until("the target is traced", || tracer_of(&program));
    kill(tracer, Signal::SIGKILL).expect("the tracer can be killed");
    finish(&mut child, "record after its tracer was killed");
    let info = reads(&log).expect("a log");
    assert!(
        number(&info["events"]) >= flushed,
        "{flushed} were flushed: {info:#}"
    );
    assert_eq!(info["complete"], false);
    let verify = json(&log, &["verify"]);
    assert_eq!(verify["drift_bytes"], 0, "{verify:#}");
    let leaks = json(&log, &["leaks"]);
    let leak = crate::common::truth::stacks_of(&leaks, "leak_raw").next();
    assert!(
        leak.is_some_and(|stack| number(&stack["held_bytes"]) > 0),
        "{leaks:#}"
    );
}

#[test]
fn a_sigkill_at_any_moment_leaves_a_log_that_reads() {
    for round in 0..24u64 {
        let dir = TempDir::new().expect("a temporary directory");
        let log = dir.path().join("log");
        let (mut child, program) = start_endless(dir.path());
        let tracer = until("the target is traced", || tracer_of(&program));
        // From at once to after several flushes; the moments are spread, not drawn.
        std::thread::sleep(std::time::Duration::from_micros(round * round * 4000));
        kill(tracer, Signal::SIGKILL).expect("the tracer can be killed");
        finish(&mut child, "record after its tracer was killed");
        let info = reads(&log);
        assert!(
            info.is_none_or(|info| info["complete"] == false),
            "round {round}"
        );
    }
}

#[test]
fn every_cut_reads_without_panic_and_never_as_whole() {
    let recording = Recording::of(&victim_command("storm 4 300 1 3"));
    let whole = fs::read(&recording.log).expect("the log");
    let all = number(&recording.json(&["info"])["events"]);
    let cut = recording.log.with_file_name("cut");
    let mut last = 0;
    for step in 0..40 {
        let len = whole.len() * step / 40;
        fs::write(&cut, &whole[..len]).expect("a file");
        let Some(info) = reads(&cut) else { continue };
        assert_eq!(info["complete"], false, "cut at {len} of {}", whole.len());
        let events = number(&info["events"]);
        assert!(
            last <= events && events <= all,
            "cut at {len}: {events} events, {last} in a shorter one"
        );
        last = events;
    }
}

#[test]
fn flipped_bytes_are_found() {
    let recording = Recording::of(&victim_command("storm 4 300 1 3"));
    let whole = fs::read(&recording.log).expect("the log");
    let flipped = recording.log.with_file_name("flipped");
    for step in 0..60 {
        let at = whole.len() * step / 60 + step % 7;
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (step % 8);
        fs::write(&flipped, bytes).expect("a file");
        reads(&flipped);
        let run = Run::of(maptrail().arg("info").arg(&flipped).arg("--json"));
        // A damaged index costs nothing but time: it is told, and the log is still whole.
        let told = serde_json::from_slice(&run.stdout).is_ok_and(|info: Value| {
            let health = &info["health"];
            info["complete"] == false || health["has_index"] == false || health["has_end"] == false
        });
        let noticed = run.code() == 2 || told || run.errors().contains("damage");
        assert!(
            noticed,
            "byte {at} of {} was flipped, and nothing said:\n{}{}",
            whole.len(),
            run.text(),
            run.errors()
        );
    }
}

/// The target went on to its end, the end of the output was said, and the log is good to that point.
fn assert_survived(run: &Run, log: &Path, words: &[&str]) {
    assert_eq!(run.code(), 0, "the target was disturbed: {}", run.errors());
    Truth::read(&run.text());
    let said = run.errors().to_lowercase();
    assert!(
        words.iter().any(|w| said.contains(w)),
        "record did not say what happened: {said}"
    );
    let info = reads(log).expect("a log");
    assert!(number(&info["events"]) > 0, "{info:#}");
    assert_eq!(json(log, &["verify"])["drift_bytes"], 0);
    assert_eq!(info["complete"], false, "{info:#}");
    assert!(number(&info["lost"]) > 0, "{info:#}");
    let end = info["end"].as_str().unwrap_or_default();
    assert!(end.contains("could not be written"), "{info:#}");
    let leaks = Run::of(maptrail().arg("leaks").arg(log)).errors();
    assert!(leaks.contains("lost"), "{leaks}");
}

/// More events than the small outputs below can hold.
fn large_program() -> std::process::Command {
    victim_command("storm 4 60000")
}

#[test]
fn a_full_disk_ends_the_log_and_not_the_target() {
    if !is_root() {
        return skip("a small file system can be mounted by root only");
    }
    let dir = TempDir::new().expect("a temporary directory");
    let mount =
        Run::of(command("mount", ["-t", "tmpfs", "-o", "size=192k", "none"]).arg(dir.path()));
    if !mount.status.success() {
        return skip(&format!(
            "a small file system cannot be mounted here: {}",
            mount.errors()
        ));
    }
    let log = dir.path().join("log");
    let outcome = std::panic::catch_unwind(|| {
        let run = Run::of(&mut recorded(&[], &log, &large_program()));
        assert_survived(&run, &log, &["space"]);
    });
    Run::of(command("umount", ["-l"]).arg(dir.path()));
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn a_file_size_limit_ends_the_log_and_not_the_target() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let record = recorded(&[], &log, &large_program());
    let mut launch = command(victim("launch_as"), ["limit=1:150000", "--"]);
    let run = Run::of(launch.arg(record.get_program()).args(record.get_args()));
    assert_survived(&run, &log, &["too large", "space"]);
}

#[test]
fn a_log_that_could_take_nothing_but_its_header_is_still_a_log() {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    // More than a header, less than the first chunk.
    let record = |options: &[&str]| {
        let record = recorded(options, &log, &victim_command("raw_leak 1000 4096 10"));
        let mut launch = command(victim("launch_as"), ["limit=1:1000", "--"]);
        Run::of(launch.arg(record.get_program()).args(record.get_args()))
    };
    let run = record(&[]);
    assert_eq!(run.code(), 0, "the target was disturbed: {}", run.errors());
    Truth::read(&run.text());
    let info = reads(&log).expect("a log");
    assert_eq!(info["events"], 0, "{info:#}");
    assert_eq!(info["complete"], false, "{info:#}");

    let said = run.errors();
    let first = said.lines().next().unwrap_or_default();
    assert!(first.contains("could not be written"), "{said}");
    assert!(!said.contains("names of functions"), "{said}");
    assert!(!said.contains("Next:"), "{said}");

    let checked = record(&["--force", "--fail-on", "leak"]);
    assert_eq!(checked.code(), 2, "{}", checked.errors());
    assert!(
        checked.errors().contains("could not be checked"),
        "{}",
        checked.errors()
    );
}
