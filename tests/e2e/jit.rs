//! Code that a just-in-time compiler made is called as the compiler calls it, in the space where that holds,
//! and by a log that needs nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::attach::{Started, attach};
use crate::common::truth::{functions, stacks_of};
use crate::common::{
    Recording, Run, ask, assert_exact, command, have_or_skip, json, number, testdata, victim,
};

/// A perf map that a recorded program leaves behind. It is removed when this is dropped.
struct PerfMap(PathBuf);

impl PerfMap {
    fn of(pid: u32) -> PerfMap {
        PerfMap(PathBuf::from(format!("/tmp/perf-{pid}.map")))
    }
}

impl Drop for PerfMap {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

/// Records the victim with these arguments, and removes the files that it and its child leave.
fn record(args: &[&str]) -> Recording {
    let recording = Recording::of(&command(victim("jit"), args));
    recording.assert_exact();
    for line in recording.run.text().lines() {
        let truth: Value = serde_json::from_str(line).expect("a truth");
        drop(PerfMap(truth["perf_map"].as_str().expect("a path").into()));
    }
    recording
}

/// What calls `leak_jit` in a stack with it: the function, if it is known.
fn caller(stack: &Value) -> Option<&str> {
    let frames = stack["frames"].as_array().expect("frames");
    let at = frames.iter().position(|f| f["function"] == "leak_jit");
    let caller = frames.get(at? + 1).expect("a caller");
    assert_eq!(caller["module"], "", "code in no file: {stack:#}");
    caller["function"].as_str()
}

/// What called `leak_jit` in each process's first leak, by its pid, as `who` tells it.
fn callers(recording: &Recording) -> Vec<(u64, Option<String>)> {
    let mut leaks: Vec<Value> = recording.events();
    leaks.retain(|event| event["call"] == "mmap" && number(&event["args"][1]) == 1 << 20);
    leaks.sort_by_key(|event| number(&event["pid"]));
    leaks.dedup_by_key(|event| number(&event["pid"]));
    let told = leaks.iter().map(|event| {
        let address = event["result"].as_str().expect("an address");
        let life = recording.json(&["who", address]);
        let spaces = life["spaces"].as_array().expect("spaces");
        let of_pid = spaces.iter().find(|space| space["pid"] == event["pid"]);
        let touches = of_pid.expect("its space")["touches"].as_array();
        let name = touches.expect("touches").iter().find_map(caller);
        (number(&event["pid"]), name.map(str::to_owned))
    });
    told.collect()
}

#[test]
fn the_last_name_for_an_address_is_in_the_log() {
    let recording = record(&["decode frame(int)"]);
    let leaks = recording.json(&["leaks"]);
    let stack = stacks_of(&leaks, "leak_jit").next().expect("a stack");
    assert_eq!(caller(stack), Some("decode frame(int)"));
    assert_eq!(number(&stack["held_mappings"]), 20);
    let label = stack["label"].as_str().expect("a label");
    assert!(
        label.contains("leak_jit ← decode frame(int) ← work"),
        "{label}"
    );
    let text = recording.ask(&["leaks", "--all"]);
    assert!(text.contains(" decode frame(int) (JIT)\n"), "{text}");
    assert!(!text.contains("code_that_was_here_before"), "{text}");
}

#[test]
fn code_without_a_perf_map_has_no_name() {
    let recording = record(&["-"]);
    let leaks = recording.json(&["leaks"]);
    let stack = stacks_of(&leaks, "leak_jit").next().expect("a stack");
    assert_eq!(caller(stack), None);
}

#[test]
fn the_same_address_has_another_name_in_another_process() {
    for (parent, child) in [("decode", "encode"), ("decode", "-"), ("-", "encode")] {
        let recording = record(&[parent, "20", "1048576", "0", child]);
        let name = |name: &str| (name != "-").then(|| name.to_owned());
        // The first call of all is the parent's.
        let first = number(&recording.events().first().expect("an event")["pid"]);
        let told = callers(&recording);
        assert_eq!(told.len(), 2, "{told:?}");
        for (pid, told) in told {
            let expected = if pid == first { parent } else { child };
            assert_eq!(told, name(expected), "of {pid}; the first is {first}");
        }
        // Both have one stack, and two names are none.
        let leaks = recording.json(&["leaks"]);
        let stack = stacks_of(&leaks, "leak_jit").next().expect("a stack");
        assert_eq!(number(&stack["spaces"]), 2, "{leaks:#}");
        if name(parent).is_some() && name(child).is_some() {
            assert_eq!(caller(stack), None);
        }
    }
}

/// Attaches to a program that has said that it is ready, and expects these functions among those that hold
/// memory at the end, in this order.
fn attach_and_expect(program: &mut Command, expected: &[&str]) {
    let dir = TempDir::new().expect("a temporary directory");
    // Node leaves a log of its own where it is started.
    program.current_dir(dir.path());
    let mut started = Started::of(program, dir.path().join("output"));
    let _map = PerfMap::of(started.pid());
    started.until_it_says("ready");
    let log = dir.path().join("log");
    let run = Run::of(&mut attach(started.pid(), &log, "1s"));
    assert_eq!(run.code(), 0, "{}", run.errors());
    assert_named(&log, &run, expected);
}

/// Asserts that a stack that holds memory goes through these functions, inner ones first.
fn assert_named(log: &Path, run: &Run, expected: &[&str]) {
    assert_exact(log, &run.errors());
    let leaks = json(log, &["leaks"]);
    let goes_through = |stack: &&Value| {
        let mut functions = functions(stack);
        let held = number(&stack["held_bytes"]) > 0;
        held && (expected.iter()).all(|name| functions.any(|f| f.contains(name)))
    };
    let stacks = leaks["stacks"].as_array().expect("stacks");
    assert!(
        stacks.iter().find(goes_through).is_some(),
        "no {expected:?} in:\n{}",
        ask(log, &["leaks", "--all"])
    );
}

#[test]
fn javascript_functions_of_a_running_node() {
    if !have_or_skip("node") {
        return;
    }
    // One compiler alone: which one takes a function when is not this test's business.
    let options = ["--perf-basic-prof", "--always-sparkplug", "--no-opt"];
    let mut node = command("node", options);
    node.arg(testdata().join("programs/jit.js"));
    attach_and_expect(&mut node, &["JS:^decodeFrame", "JS:^decodeAll", "JS:^work"]);
}

#[test]
fn java_methods_of_a_running_java() {
    if !have_or_skip("javac") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let source = testdata().join("programs/Jit.java");
    let mut javac = command("javac", ["-d".as_ref(), dir.path(), &source]);
    let compiled = Run::of(&mut javac);
    assert_eq!(compiled.code(), 0, "{}", compiled.errors());
    let options = [
        "-Xcomp",
        "-XX:CompileCommand=quiet",
        "-XX:CompileCommand=compileonly,Jit::*",
        "-XX:CompileCommand=dontinline,Jit::*",
    ];
    let mut java = command("java", options);
    java.args(["-XX:+PreserveFramePointer", "-cp"])
        .arg(dir.path())
        .arg("Jit");
    attach_and_expect(&mut java, &["Jit.decodeFrame(int)", "Jit.decodeAll(int)"]);
}
