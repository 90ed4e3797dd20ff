//! The log begins when the window opens: with what was mapped before, and with nothing that came earlier.

use std::collections::BTreeSet;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use maptrail_tracelog::record::{Body, CheckpointReason};
use maptrail_tracelog::types::Range;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tempfile::TempDir;

use super::{PAGE, PAGES, Scene, Window, read};
use crate::common::attach::{Started, assert_free, attach, tracer_of};
use crate::common::{Run, command, number, until};

/// Where the kernel's half begins, which `[vsyscall]` is in. No call can touch that.
const KERNEL: u64 = 1 << 63;

/// A range and its permissions.
type Mapped = (u64, u64, String);

/// The ranges in `/proc/PID/maps`.
fn mapped(pid: u32) -> BTreeSet<Mapped> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let ranges = text.lines().map(|line| {
        let (range, rest) = line.split_once(' ').expect("a range");
        let (start, end) = range.split_once('-').expect("a range");
        (hex(start), hex(end), rest[..4].to_owned())
    });
    ranges.filter(|(start, _, _)| *start < KERNEL).collect()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address")
}

/// The ranges of the only space that `maps --json` tells of.
fn told(maps: &Value) -> BTreeSet<Mapped> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let ranges = maps["spaces"][0]["ranges"].as_array();
    let ranges = ranges.unwrap_or_else(|| panic!("no space: {maps:#}"));
    ranges
        .iter()
        .map(|range| {
            let [start, end, perms] = ["start", "end", "perms"].map(|key| text(&range[key]));
            (hex(&start), hex(&end), perms)
        })
        .collect()
}

#[test]
fn what_was_mapped_before_is_there_from_the_first_instant() {
    let mut scene = Scene::new();
    scene.worker.maps("map 5 100");
    let before = mapped(scene.worker.pid());
    let window = scene.open(&[]);
    scene.worker.maps("map 3");
    let log = window.close();
    log.assert_exact();
    let first = log.json(&["maps", "--at", "0s"]);
    assert_eq!(told(&first), before);
    let ranges = first["spaces"][0]["ranges"].as_array().expect("ranges");
    let born = ranges.iter().find(|range| !range["birth"].is_null());
    assert_eq!(born, None);
    let reserved = |maps: &Value| number(&maps["spaces"][0]["reserved_bytes"]);
    let last = log.json(&["maps"]);
    assert_eq!(reserved(&last) - reserved(&first), 3 * PAGES * PAGE);
}

#[test]
fn what_was_mapped_before_is_at_the_first_point_of_a_timeline() {
    let mut scene = Scene::new();
    let before = mapped(scene.worker.pid());
    let window = scene.open(&[]);
    scene.worker.maps("map 3");
    let timeline = window.close().json(&["timeline"]);
    let point = &timeline["points"][0];
    let reserved: u64 = before.iter().map(|(start, end, _)| end - start).sum();
    assert_eq!(point["reserved_bytes"], reserved, "{point:#}");
    assert!(!point["resident_bytes"].is_null(), "{point:#}");
}

/// A worker whose window takes its time to open, since a thread in a transfer is not interrupted, but waited
/// for first.
fn slow_to_open() -> Scene {
    let mut scene = Scene::new();
    scene.worker.thread("stuck");
    scene.worker.does("to stuck stuck", "stuck");
    scene
}

#[test]
fn what_happens_while_a_window_opens_is_no_part_of_it() {
    // On a busy machine the window may be open before anything could happen.
    for _ in 0..20 {
        let mut scene = slow_to_open();
        let pid = scene.worker.pid();
        let mut attach = scene.attach(&["--max-slowdown", "0"]);
        let front = Started::of(&mut attach, scene.dir.path().join("window"));
        until("the first thread is traced", || tracer_of(pid));
        scene.worker.maps("map 5");
        let before = (mapped(pid), SystemTime::now());
        if front.said().contains("recording") {
            continue;
        }
        return assert_begins_after(&mut scene, front, &before);
    }
    panic!("no window took long to open");
}

/// Asserts that a log begins later than `then`, with what was mapped by then.
fn assert_begins_after(
    scene: &mut Scene,
    mut front: Started,
    then: &(BTreeSet<Mapped>, SystemTime),
) {
    let (before, opening) = then;
    front.until_it_says("recording");
    scene.worker.maps("map 3");
    let log = Window {
        front,
        log: scene.log(),
    };
    let log = log.close();
    scene.worker.assert_unharmed("a window beside a transfer");
    log.assert_exact();
    assert_eq!(log.maps_of(scene.worker.pid(), PAGES), 3);
    let (header, records) = read(&log);
    let opening = opening.duration_since(UNIX_EPOCH).expect("a date");
    assert!(u128::from(header.wall_start_ns) >= opening.as_nanos());
    // The first to come is the kernel's word, then samples and calls.
    let (first, vmas) = (records.iter())
        .find_map(|record| match &record.body {
            Body::Checkpoint(c) if c.reason == CheckpointReason::Start => Some((record, &c.vmas)),
            _ => None,
        })
        .expect("a first checkpoint");
    let callable = vmas.iter().filter(|vma| vma.range.start.0 < KERNEL);
    let checked = callable.map(|vma| {
        let Range { start, end } = vma.range;
        (start.0, end.0, vma.perms.to_string())
    });
    assert_eq!(checked.collect::<BTreeSet<_>>(), *before);
    let samples = records.iter().filter(|r| matches!(r.body, Body::Rss(..)));
    let samples: Vec<_> = samples.map(|r| (r.stamp, r.ns)).collect();
    assert!(!samples.is_empty());
    let early = samples.iter().find(|at| **at < (first.stamp, first.ns));
    assert_eq!(early, None, "before {first:?}");
    for event in log.events() {
        assert!(number(&event["entry_ns"]) >= first.ns.0, "{event}");
    }
}

#[test]
fn a_process_that_waits_for_a_named_pipe_is_recorded() {
    let dir = TempDir::new().expect("a temporary directory");
    let pipe = dir.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).expect("a pipe");
    // With both ends open the open does not wait, and the read does.
    let mut cat = command("sh", ["-c", "exec cat <> \"$0\""]);
    let cat = Started::of(cat.arg(&pipe), dir.path().join("output"));
    until("cat waits", || {
        let call = fs::read_to_string(format!("/proc/{}/syscall", cat.pid()));
        let name = fs::read_to_string(format!("/proc/{}/comm", cat.pid()));
        let waits = call.is_ok_and(|call| call.starts_with("0 "));
        (waits && name.is_ok_and(|name| name == "cat\n")).then_some(())
    });
    let run = Run::of(&mut attach(cat.pid(), &dir.path().join("log"), "100ms"));
    assert_eq!(run.code(), 0, "{}", run.errors());
    assert_free(cat.pid(), "a window");
}
