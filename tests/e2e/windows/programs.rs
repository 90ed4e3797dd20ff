//! The target runs another program while a window is open, or its first thread has left already.

use maptrail_tracelog::record::{Body, Origin};

use super::{Log, PAGE, PAGES, Scene, is_map, read};
use crate::common::{until, victim};

/// How often `worker` was told to map mapped in a space.
fn maps_in(log: &Log, space: u32) -> usize {
    let events = log.events();
    let there = events.iter().filter(|event| event["space"] == space);
    there.filter(|event| is_map(event, PAGES)).count()
}

/// The worker maps, runs itself anew by `command`, twice, and goes on mapping, all in one window.
fn a_new_program(options: &[&str], command: &str) {
    let mut scene = Scene::new();
    let pid = scene.worker.pid();
    for name in ["one", "two"] {
        scene.worker.thread(name);
    }
    let window = scene.open(options);
    scene.worker.maps("to one map 2");
    for maps in [3, 4] {
        scene.worker.tell(command);
        assert_eq!(scene.worker.answer(), (pid, "ready".to_owned()));
        let one = scene.worker.thread("one");
        scene.worker.maps("map 1");
        scene.worker.maps(&format!("to one map {maps}"));
        assert_ne!(one, pid);
    }
    let log = window.close();
    scene.worker.assert_unharmed("a window with new programs");
    log.assert_exact();
    log.assert_untraced(&[], 0);
    let maps = [0, 1, 2].map(|space| maps_in(&log, space));
    assert_eq!(maps, [2, 1 + 3, 1 + 4], "after {command}");
    let origins: Vec<Origin> = (read(&log).1.into_iter())
        .filter_map(|record| match record.body {
            Body::SpaceStart { origin, .. } => Some(origin),
            _ => None,
        })
        .collect();
    let path = victim("worker").canonicalize().expect("a victim");
    let anew = Origin::Exec {
        path: path.display().to_string(),
        argv: vec!["worker".to_owned()],
    };
    assert_eq!(origins, [Origin::Attach, anew.clone(), anew]);
}

#[test]
fn a_program_that_the_first_thread_runs_is_recorded_on() {
    a_new_program(&[], "exec");
}

#[test]
fn a_program_that_another_thread_runs_is_recorded_on() {
    a_new_program(&[], "to one exec");
}

#[test]
fn a_new_program_is_recorded_on_with_its_children() {
    a_new_program(&["--follow-forks"], "to one exec");
}

#[test]
fn a_program_that_a_chosen_thread_runs_is_recorded_on() {
    let mut scene = Scene::new();
    let pid = scene.worker.pid();
    let one = scene.worker.thread("one");
    scene.worker.thread("two");
    let window = scene.open(&["--tid", &one.to_string()]);
    scene.worker.maps("to one map 2");
    scene.worker.tell("to one exec");
    assert_eq!(scene.worker.answer(), (pid, "ready".to_owned()));
    scene.worker.maps("map 3");
    let log = window.close();
    scene.worker.assert_unharmed("a window with a new program");
    log.assert_exact();
    assert_eq!([0, 1].map(|space| maps_in(&log, space)), [2, 3]);
}

#[test]
fn a_program_that_an_unchosen_thread_runs_ends_the_window_of_the_chosen_ones() {
    for first in [true, false] {
        let mut scene = Scene::new();
        let pid = scene.worker.pid();
        let one = scene.worker.thread("one");
        scene.worker.thread("two");
        let (chosen, command) = match first {
            true => (pid, "map 2"),
            false => (one, "to one map 2"),
        };
        let window = scene.open(&["--tid", &chosen.to_string()]);
        scene.worker.maps(command);
        scene.worker.tell("to two exec");
        assert_eq!(scene.worker.answer(), (pid, "ready".to_owned()));
        let log = window.closed();
        assert_eq!(log.end(), "the threads that were followed ended", "{first}");
        scene
            .worker
            .assert_unharmed("the end of the threads that were chosen");
        assert_eq!(log.maps_of(chosen, PAGES), 2);
        assert_eq!(log.json(&["verify"])["drift_bytes"], 0);
    }
}

#[test]
fn a_window_on_threads_by_name_goes_on_in_a_new_program() {
    let mut scene = Scene::new();
    let pid = scene.worker.pid();
    scene.worker.thread("chosen");
    scene.worker.thread("other");
    let window = scene.open(&["--thread-name", "chosen"]);
    scene.worker.maps("to chosen map 2");
    scene.worker.tell("to other exec");
    assert_eq!(scene.worker.answer(), (pid, "ready".to_owned()));
    let anew = scene.worker.thread("chosen");
    window.until_follows(&mut scene.worker, "chosen", anew);
    scene.worker.maps("to chosen map 3");
    scene.worker.maps("map 4");
    let log = window.close();
    scene.worker.assert_unharmed("a window with a new program");
    log.assert_exact();
    assert_eq!([0, 1].map(|space| maps_in(&log, space)), [2, 3]);
    log.assert_untraced(&[(pid, "not-chosen")], 4 * PAGES * PAGE);
}

#[test]
fn a_process_whose_first_thread_has_left_is_recorded() {
    let mut scene = Scene::new();
    let one = scene.worker.thread("one");
    let reader = scene.worker.does("leave", "reads");
    let pid = scene.worker.pid();
    until("the first thread is a zombie", || {
        super::states(pid).contains(&'Z').then_some(())
    });
    let window = scene.open(&[]);
    scene.worker.maps("to one map 2");
    scene.worker.maps("map 3");
    let new = scene.worker.thread("new");
    scene.worker.maps("to new map 4");
    let log = window.close();
    scene
        .worker
        .assert_unharmed("a window without the first thread");
    log.assert_exact();
    log.assert_untraced(&[], 0);
    for (tid, maps) in [(one, 2), (reader, 3), (new, 4)] {
        assert_eq!(log.maps_of(tid, PAGES), maps);
    }
}

#[test]
fn a_process_whose_first_thread_leaves_is_recorded_on() {
    let mut scene = Scene::new();
    let pid = scene.worker.pid();
    let one = scene.worker.thread("one");
    let window = scene.open(&[]);
    scene.worker.maps("map 2");
    let reader = scene.worker.does("leave", "reads");
    until("the first thread is a zombie", || {
        super::states(pid).contains(&'Z').then_some(())
    });
    scene.worker.maps("to one map 3");
    scene.worker.maps("map 4");
    let log = window.close();
    scene
        .worker
        .assert_unharmed("a window in which the first thread left");
    log.assert_exact();
    log.assert_untraced(&[], 0);
    for (tid, maps) in [(pid, 2), (one, 3), (reader, 4)] {
        assert_eq!(log.maps_of(tid, PAGES), maps);
    }
}

#[test]
fn the_only_thread_that_is_left_runs_a_new_program() {
    let mut scene = Scene::new();
    let pid = scene.worker.pid();
    scene.worker.does("leave", "reads");
    until("the first thread is a zombie", || {
        super::states(pid).contains(&'Z').then_some(())
    });
    let window = scene.open(&[]);
    scene.worker.maps("map 2");
    scene.worker.tell("exec");
    assert_eq!(scene.worker.answer(), (pid, "ready".to_owned()));
    scene.worker.maps("map 3");
    let log = window.close();
    scene.worker.assert_unharmed("a window with a new program");
    log.assert_exact();
    assert_eq!([0, 1].map(|space| maps_in(&log, space)), [2, 3]);
}
