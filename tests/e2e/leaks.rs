//! The right stack first, with the right sums, and nothing that was released called a leak.

use serde_json::Value;

use crate::common::truth::{functions, stacks, stacks_of};
use crate::common::{Recording, number, victim_command};

/// Records a victim and returns its truth-checked `leaks --json`.
fn leaks_of(line: &str) -> (Recording, Value) {
    let recording = Recording::of(&victim_command(line));
    assert_eq!(recording.run.code(), 0, "{}", recording.run.errors());
    let leaks = recording.json(&["leaks", "--top", "100000"]);
    recording.truth().assert_told_by(&leaks, true);
    (recording, leaks)
}

fn worst(leaks: &Value) -> Vec<String> {
    functions(stacks(leaks).first().expect("a stack"))
        .map(str::to_owned)
        .collect()
}

/// Asserts that the worst stack is the one, its frames in this order (others may lie between), and that
/// it is called a leak.
fn assert_worst(leaks: &Value, frames: &[&str]) {
    let names = worst(leaks);
    let mut rest = names.iter();
    for wanted in frames {
        assert!(
            rest.any(|name| name == wanted),
            "the worst stack is {names:?}, not {frames:?}"
        );
    }
    let first = &stacks(leaks)[0];
    assert_eq!(first["verdict"], "leak", "{first:#}");
    assert!(number(&first["held_bytes"]) > 0);
}

/// Asserts that no stack through `function` is called a leak.
fn assert_no_leak(leaks: &Value, function: &str) {
    assert!(
        stacks_of(leaks, function).next().is_some(),
        "no stack of {function}"
    );
    for stack in stacks_of(leaks, function) {
        assert_ne!(
            stack["verdict"], "leak",
            "{function} gave everything back: {stack:#}"
        );
    }
}

#[test]
fn a_raw_system_call_leak_is_the_worst_stack() {
    let (_, leaks) = leaks_of("raw_leak 600 262144 1000");
    assert_worst(&leaks, &["leak_raw", "decode_frame", "main"]);
    assert_no_leak(&leaks, "churn_raw");
}

#[test]
fn a_large_reservation_does_not_hide_a_leak() {
    let (_, leaks) = leaks_of("raw_leak 600 65536 1000 2 1024");
    assert_worst(&leaks, &["leak_raw", "decode_frame", "main"]);
    assert_no_leak(&leaks, "reserve_once");
}

#[test]
fn a_leak_inside_a_patched_munmap_is_named_with_its_caller() {
    let (_, leaks) = leaks_of("hooked 20000 10000");
    assert_worst(
        &leaks,
        &["leak_in_hook", "hook_munmap", "give_back", "main"],
    );
    assert_no_leak(&leaks, "borrow");
    let module = stacks(&leaks)[0]["frames"]
        .as_array()
        .and_then(|frames| frames.iter().find(|f| f["function"] == "leak_in_hook"))
        .and_then(|frame| frame["module"].as_str())
        .unwrap_or_default();
    assert!(
        module.ends_with("hook_lib.so"),
        "the frame lies in {module}"
    );
}

#[test]
fn a_leak_in_one_thread_among_64_is_the_worst_stack() {
    let (recording, leaks) = leaks_of("thread_leak 64 60");
    assert_worst(&leaks, &["leak_in_thread", "worker"]);
    assert_no_leak(&leaks, "churn_in_thread");
    assert_eq!(recording.json(&["info"])["threads"], 65);
}

#[test]
fn a_leak_in_a_forked_worker_is_the_worst_stack() {
    let (_, leaks) = leaks_of("fork_worker 300 131072 1");
    assert_worst(&leaks, &["leak_in_worker", "work", "main"]);
    assert_no_leak(&leaks, "churn_in_worker");
    assert_no_leak(&leaks, "churn_in_parent");
}

#[test]
fn memory_released_in_pieces_is_no_leak() {
    let (_, leaks) = leaks_of("partial_release 60");
    assert_no_leak(&leaks, "keep_none");
    for stack in stacks_of(&leaks, "keep_none") {
        assert_eq!(stack["held_bytes"], 0);
    }
}

#[test]
fn frames_have_file_and_line_where_there_is_debug_information() {
    let (_, leaks) = leaks_of("raw_leak 300 65536 100");
    let source = std::fs::read_to_string(crate::common::testdata().join("victims/raw_leak.c"))
        .expect("a source");
    let stack = stacks_of(&leaks, "leak_raw").next().expect("the stack");
    for (function, called) in [("leak_raw", "raw_map"), ("decode_frame", "leak_raw(")] {
        let frame = stack["frames"]
            .as_array()
            .and_then(|frames| frames.iter().find(|f| f["function"] == function))
            .expect("the frame");
        assert!(
            frame["file"]
                .as_str()
                .is_some_and(|f| f.ends_with("raw_leak.c")),
            "{frame:#}"
        );
        let line = usize::try_from(number(&frame["line"])).expect("a line");
        let text = source.lines().nth(line - 1).unwrap_or_default();
        assert!(
            text.contains(called),
            "{function}'s line {line} is {text:?}, which does not call {called}"
        );
    }
}

#[test]
fn resident_bytes_are_those_that_were_touched() {
    // leak_raw touches all of its pages, reserve_once none.
    let (recording, leaks) = leaks_of("raw_leak 300 262144 100 1 256");
    let resident = |function: &str| -> u64 {
        stacks_of(&leaks, function)
            .map(|s| number(&s["resident_bytes"]))
            .sum()
    };
    assert_eq!(
        resident("leak_raw"),
        recording.truth().of("leak_raw", "held_bytes")
    );
    assert_eq!(resident("reserve_once"), 0);
}

#[test]
fn sums_and_order_of_the_json_are_consistent() {
    let (_, leaks) = leaks_of("thread_leak 16 40");
    for stack in stacks(&leaks) {
        let [mapped, released, held] =
            ["mapped_bytes", "released_bytes", "held_bytes"].map(|key| number(&stack[key]));
        assert_eq!(mapped, released + held, "{stack:#}");
        assert!(number(&stack["resident_bytes"]) <= held, "{stack:#}");
        let (first, last) = (stack["first_s"].as_f64(), stack["last_s"].as_f64());
        assert!(
            first <= last && last <= leaks["window_s"].as_f64(),
            "{stack:#}"
        );
    }
    // Worst first. Which verdicts there are is a matter of time in a run as short as this one.
    let rank = |stack: &Value| {
        let verdicts = [
            "leak",
            "undecided",
            "reservation",
            "plateau",
            "one-off",
            "churn",
        ];
        let verdict = verdicts.iter().position(|v| stack["verdict"] == *v);
        let held = number(&stack["held_bytes"]);
        (verdict.expect("a verdict"), std::cmp::Reverse(held))
    };
    assert!(stacks(&leaks).is_sorted_by_key(rank), "{leaks:#}");
}

#[test]
fn the_text_names_the_leaking_function() {
    let (recording, _) = leaks_of("raw_leak 300 65536 100");
    let text = recording.ask(&["leaks"]);
    assert!(
        text.contains("leak_raw") && text.contains("raw_leak.c:"),
        "{text}"
    );
}
