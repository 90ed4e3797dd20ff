//! The recorded calls against `strace`, call by call: order, arguments, results.
//!
//! Addresses are made the same on both sides by switching randomisation off; none stands here.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{
    Run, ask, assert_exact, command, have_or_skip, recorded, testdata, victim, victim_command,
};

/// The calls that both know by the same name.
const CALLS: &str = "mmap,munmap,mremap,brk,mprotect,pkey_mprotect,madvise,shmat,shmdt,remap_file_pages,\
                     mlock,mlock2,munlock,mlockall,munlockall,io_setup,io_destroy";

fn without_randomisation(rest: &Command) -> Run {
    let mut launch = command(victim("launch_as"), ["aslr-off", "--"]);
    Run::of(launch.arg(rest.get_program()).args(rest.get_args()))
}

/// The lines that `strace` gives for a program, without pids and padding.
fn by_strace(program: &Command, dir: &Path, options: &[&str]) -> Vec<String> {
    let trace = dir.join("strace");
    let mut strace = command(
        "strace",
        [
            "-f",
            "-a",
            "1",
            "-e",
            &format!("trace={CALLS}"),
            "-e",
            "signal=none",
        ],
    );
    strace
        .args(options)
        .arg("-o")
        .arg(&trace)
        .arg("--")
        .arg(program.get_program())
        .args(program.get_args());
    without_randomisation(&strace);
    let text = std::fs::read_to_string(&trace).expect("strace's output");
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, rest)| rest.trim_start().to_owned())
        .filter(|line| !line.starts_with("+++") && !line.starts_with("---"))
        .collect()
}

/// Records the program, without randomisation, at `dir/log`.
fn record(program: &Command, dir: &Path) {
    let log = dir.join("log");
    let run = without_randomisation(&recorded(&[], &log, program));
    assert_exact(&log, &run.errors());
}

fn events(dir: &Path) -> Vec<Value> {
    ask(&dir.join("log"), &["events", "--format", "json"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .filter(|event: &Value| {
            event["call"]
                .as_str()
                .is_some_and(|call| CALLS.split(',').any(|known| known == call))
        })
        .collect()
}

/// A number as strace prints it raw: `NULL`, decimal or hex, perhaps with `<path>` after a descriptor.
fn raw_number(text: &str) -> u64 {
    let text = text.split('<').next().unwrap_or(text);
    let parsed = match (text, text.strip_prefix("0x")) {
        ("NULL", _) => Some(0),
        (_, Some(hex)) => u64::from_str_radix(hex, 16).ok(),
        _ => text.parse::<i64>().ok().map(|n| n as u64),
    };
    parsed.unwrap_or_else(|| panic!("strace printed {text:?}"))
}

fn json_number(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => raw_number(text),
        None => value
            .as_i64()
            .map(|n| n as u64)
            .or(value.as_u64())
            .unwrap_or_else(|| panic!("{value} is no number")),
    }
}

/// One of strace's raw lines: name, arguments, result (negated errno for a failure).
fn parse(line: &str) -> (String, Vec<u64>, Result<u64, String>) {
    let (call, result) = line
        .rsplit_once(" = ")
        .unwrap_or_else(|| panic!("strace printed {line:?}"));
    let (name, rest) = call.split_once('(').expect("a call");
    let args = rest.trim_end().strip_suffix(')').expect("a call");
    let args = args
        .split(", ")
        .filter(|a| !a.is_empty())
        .map(raw_number)
        .collect();
    let mut words = result.split(' ');
    let value = words.next().expect("a result");
    let result = match (value, words.next()) {
        ("-1", Some(errno)) => Err(errno.to_owned()),
        _ => Ok(raw_number(value)),
    };
    (name.to_owned(), args, result)
}

/// Compares call by call. `ids` are the calls whose first argument is an id that differs between runs.
fn compare(line: &str, ids: &[&str]) {
    if !have_or_skip("strace") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let program = victim_command(line);
    record(&program, dir.path());
    let theirs = by_strace(&program, dir.path(), &["-e", "abbrev=none", "-X", "raw"]);
    let ours = events(dir.path());
    for (number, (line, event)) in theirs.iter().zip(&ours).enumerate() {
        let (name, mut args, result) = parse(line);
        let told = format!("call {number}: strace says {line}, maptrail {event}");
        assert_eq!(event["call"], name.as_str(), "{told}");
        let mut our_args: Vec<u64> = event["args"]
            .as_array()
            .expect("args")
            .iter()
            .map(json_number)
            .collect();
        assert!(our_args.len() >= args.len(), "{told}");
        our_args.truncate(args.len());
        if ids.contains(&name.as_str()) {
            args[0] = 0;
            our_args[0] = 0;
        }
        // A descriptor, a protection, flags: the kernel looks at 32 bits of them.
        let narrow = |n: &u64| {
            if *n >> 32 == 0xffff_ffff {
                *n & 0xffff_ffff
            } else {
                *n
            }
        };
        assert_eq!(
            args.iter().map(narrow).collect::<Vec<_>>(),
            our_args.iter().map(narrow).collect::<Vec<_>>(),
            "{told}"
        );
        match result {
            Ok(value) => {
                assert_eq!(json_number(&event["result"]), value, "{told}");
                assert!(event["errno"].is_null(), "{told}");
            }
            Err(errno) => assert!(event["errno"].as_str() == Some(&errno), "{told}"),
        }
    }
    assert_eq!(ours.len(), theirs.len(), "the number of calls");
    assert!(ours.len() > 20, "too few calls to mean anything");
}

#[test]
fn partial_release_as_strace_sees_it() {
    compare("partial_release 10", &[]);
}

#[test]
fn remap_as_strace_sees_it() {
    compare("remap 10", &[]);
}

#[test]
fn brk_as_strace_sees_it() {
    compare("brk_moves 20", &[]);
}

#[test]
fn failing_calls_as_strace_sees_them() {
    compare("failing 4", &[]);
}

#[test]
fn shared_memory_as_strace_sees_it() {
    compare("shared 5", &["shmat"]);
}

#[test]
fn a_patched_libc_as_strace_sees_it() {
    compare("hooked 300 0 10", &[]);
}

#[test]
fn the_text_is_straces_own() {
    if !have_or_skip("strace") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let program = victim_command("partial_release 5");
    record(&program, dir.path());
    // Results stand in strace's usual column.
    let theirs = by_strace(&program, dir.path(), &["-a", "40"]);
    let text = ask(&dir.path().join("log"), &["events", "--format", "strace"]);
    let ours: Vec<String> = text
        .lines()
        // strace -f begins a line with the pid; what comes before the call's name is not compared.
        .map(|line| {
            line.trim_start_matches(|c: char| !c.is_ascii_lowercase())
                .to_owned()
        })
        .collect();
    for (line, our) in theirs.iter().zip(&ours) {
        assert_eq!(our, line);
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn sqlite_makes_as_many_calls_of_each_kind_as_strace_sees() {
    if !have_or_skip("strace") || !have_or_skip("sqlite3") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let script = format!(".read {}", testdata().join("programs/work.sql").display());
    let program = command("sqlite3", [":memory:", &script]);
    record(&program, dir.path());
    let mut theirs: Vec<String> = by_strace(&program, dir.path(), &[])
        .iter()
        .map(|l| parse_name(l))
        .collect();
    let mut ours: Vec<String> = events(dir.path())
        .iter()
        .filter_map(|e| e["call"].as_str())
        .map(str::to_owned)
        .collect();
    theirs.sort();
    ours.sort();
    assert_eq!(ours, theirs);
}

fn parse_name(line: &str) -> String {
    line.split('(').next().unwrap_or_default().to_owned()
}

#[test]
fn every_event_tells_its_times_thread_and_space() {
    let recording = crate::common::Recording::of(&victim_command("storm 4 200"));
    let events = recording.events();
    assert_eq!(
        events.len() as u64,
        crate::common::number(&recording.json(&["info"])["events"])
    );
    for event in &events {
        let [entry, exit] = ["entry_ns", "exit_ns"].map(|key| crate::common::number(&event[key]));
        assert!(entry <= exit, "{event}");
        for key in ["t_ns", "pid", "tid", "space", "stack"] {
            assert!(!event[key].is_null(), "no {key}: {event}");
        }
    }
}
