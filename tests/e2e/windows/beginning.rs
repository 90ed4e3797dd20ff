//! The log begins when the window opens: with what was mapped before, and with nothing that came earlier.

use std::collections::BTreeSet;
use std::fs;

use maptrail_tracelog::record::{Body, CheckpointReason};
use maptrail_tracelog::types::Range;
use serde_json::Value;

use super::programs::records;
use super::{PAGE, PAGES, Scene};
use crate::common::number;

/// A range and its permissions.
type Mapped = (u64, u64, String);

/// The ranges in `/proc/PID/maps`. What no call can touch is not compared.
fn mapped(pid: u32) -> BTreeSet<Mapped> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let lines = text.lines().filter(|line| !line.ends_with("[vsyscall]"));
    lines
        .map(|line| {
            let (range, rest) = line.split_once(' ').expect("a range");
            let (start, end) = range.split_once('-').expect("a range");
            (hex(start), hex(end), rest[..4].to_owned())
        })
        .collect()
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
fn a_window_that_took_long_to_open_has_no_time_before_that() {
    let mut scene = Scene::new();
    scene.worker.thread("stuck");
    scene.worker.does("to stuck stuck", "stuck");
    let before = mapped(scene.worker.pid());
    // A thread in a transfer is not interrupted, and is waited for first.
    let window = scene.open(&[]);
    scene.worker.maps("map 3");
    let log = window.close();
    scene.worker.assert_unharmed("a window beside a transfer");
    log.assert_exact();
    // The first to come is the kernel's word, then samples and calls.
    let records = records(&log);
    let (first, vmas) = (records.iter())
        .find_map(|record| match &record.body {
            Body::Checkpoint(c) if c.reason == CheckpointReason::Start => Some((record, &c.vmas)),
            _ => None,
        })
        .expect("a first checkpoint");
    let checked = vmas.iter().map(|vma| {
        let Range { start, end } = vma.range;
        (start.0, end.0, vma.perms.to_string())
    });
    assert_eq!(checked.collect::<BTreeSet<_>>(), before);
    let samples = records.iter().filter(|r| matches!(r.body, Body::Rss(..)));
    let samples: Vec<_> = samples.map(|r| (r.stamp, r.ns)).collect();
    assert!(!samples.is_empty());
    let early = samples.iter().find(|at| **at < (first.stamp, first.ns));
    assert_eq!(early, None, "before {first:?}");
    for event in log.events() {
        assert!(number(&event["entry_ns"]) >= first.ns.0, "{event}");
    }
    // All that there was is there at the first point, also in RAM.
    let timeline = log.json(&["timeline"]);
    let point = &timeline["points"][0];
    let reserved: u64 = before.iter().map(|(start, end, _)| end - start).sum();
    assert_eq!(point["reserved_bytes"], reserved, "{point:#}");
    assert!(!point["resident_bytes"].is_null(), "{point:#}");
}
