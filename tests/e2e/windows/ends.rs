//! What closes a window: each time in order, with exit code 0, and the target runs on as before.

use nix::sys::signal::Signal;

use super::{Log, PAGES, Scene};
use crate::common::attach::tracer_of;
use crate::common::{assert_whole_and_no_drift, until};

/// A worker with a thread that maps and unmaps for ever, and one that waits.
fn busy() -> Scene {
    let mut scene = Scene::new();
    scene.worker.thread("one");
    scene.worker.thread("busy");
    scene.worker.does("to busy churn", "churns");
    scene
}

fn assert_in_order(scene: &mut Scene, log: &Log, end: &str) {
    assert!(log.end().contains(end), "{:?}, not {end:?}", log.end());
    scene.worker.assert_unharmed(end);
    assert_whole_and_no_drift(&log.path, &log.said);
    assert!(!log.events().is_empty());
}

#[test]
fn its_time_closes_a_window() {
    let mut scene = busy();
    let log = scene.open(&["--for", "300ms"]).closed();
    assert_in_order(&mut scene, &log, "its time was up");
}

#[test]
fn every_signal_that_ends_a_program_closes_a_window() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut scene = busy();
        let window = scene.open(&[]);
        scene.worker.maps("to one map 3");
        window.front.signal(signal);
        let log = window.closed();
        assert_in_order(&mut scene, &log, "asked to stop");
    }
}

#[test]
fn the_size_of_the_log_closes_a_window() {
    let mut scene = busy();
    let log = scene.open(&["--max-log", "64KiB"]).closed();
    assert_in_order(&mut scene, &log, "the size of --max-log");
    assert!(log.said.contains("--max-log"), "{}", log.said);
}

#[test]
fn what_it_costs_closes_a_window() {
    let mut scene = busy();
    let mut attach = scene.attach(&["--max-slowdown", "1"]);
    let log = scene.begin(&mut attach).closed();
    assert_in_order(&mut scene, &log, "--max-slowdown");
    assert!(log.said.contains("(busy)"), "{}", log.said);
}

#[test]
fn the_exit_of_the_target_closes_a_window() {
    for who in ["", "to one "] {
        let mut scene = busy();
        let pid = scene.worker.pid();
        let window = scene.open(&[]);
        scene.worker.maps("map 3");
        scene.worker.tell(&format!("{who}exit 7"));
        let log = window.closed();
        assert_eq!(log.end(), "the program ended");
        let (status, _) = scene.worker.program.end();
        assert_eq!(status.code(), Some(7));
        log.assert_exact();
        assert_eq!(log.maps_of(pid, PAGES), 3);
    }
}

#[test]
fn the_death_of_the_target_closes_a_window() {
    use std::os::unix::process::ExitStatusExt;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut scene = busy();
        let pid = scene.worker.pid();
        let window = scene.open(&[]);
        scene.worker.maps("map 3");
        scene.worker.program.signal(signal);
        let log = window.closed();
        assert_eq!(log.end(), "the program ended");
        let (status, _) = scene.worker.program.end();
        assert_eq!(status.signal(), Some(signal as i32));
        assert_whole_and_no_drift(&log.path, &log.said);
        assert_eq!(log.maps_of(pid, PAGES), 3);
    }
}

#[test]
fn the_end_of_a_target_on_chosen_threads_closes_a_window() {
    for option in ["--tid", "--thread-name"] {
        let mut scene = busy();
        let one = scene.worker.thread("chosen");
        let tid = one.to_string();
        let value = if option == "--tid" { &tid } else { "chosen*" };
        let window = scene.open(&[option, value]);
        scene.worker.maps("to chosen map 3");
        scene.worker.tell("exit 7");
        let log = window.closed();
        assert_eq!(log.end(), "the program ended", "{option}");
        let (status, _) = scene.worker.program.end();
        assert_eq!(status.code(), Some(7));
        assert_whole_and_no_drift(&log.path, &log.said);
        assert_eq!(log.maps_of(one, PAGES), 3);
    }
}

#[test]
fn the_end_of_a_target_whose_chosen_thread_is_gone_closes_a_window() {
    let mut scene = busy();
    let one = scene.worker.thread("chosen");
    let window = scene.open(&["--thread-name", "chosen"]);
    scene.worker.maps("to chosen map 3");
    scene.worker.loses("chosen");
    until("nobody is traced", || {
        tracer_of(scene.worker.pid()).is_none().then_some(())
    });
    scene.worker.tell("exit 7");
    let log = window.closed();
    assert_eq!(log.end(), "the program ended");
    assert_whole_and_no_drift(&log.path, &log.said);
    assert_eq!(log.maps_of(one, PAGES), 3);
}
