//! `--tid` and `--thread-name`: whose calls are recorded, and what is said of the others.

use super::{PAGE, PAGES, Scene};
use crate::common::attach::assert_free;

fn tids(events: &[u32]) -> std::collections::BTreeSet<u64> {
    events.iter().map(|tid| u64::from(*tid)).collect()
}

#[test]
fn threads_chosen_by_tid_are_recorded_and_what_others_did_is_told_apart() {
    let mut scene = Scene::new();
    let main = scene.worker.pid();
    let [one, two, other, _idle] = ["one", "two", "other", "idle"].map(|n| scene.worker.thread(n));
    let (first, second) = (one.to_string(), two.to_string());
    let window = scene.open(&["--tid", &first, "--tid", &second]);
    for command in ["to one map 5", "to two map 7", "to other map 6", "map 4"] {
        scene.worker.maps(command);
    }
    let log = window.close();
    scene.worker.assert_unharmed("a window on two threads");
    log.assert_exact();
    assert_eq!(log.callers(), tids(&[one, two]));
    assert_eq!(log.maps_of(one, PAGES), 5);
    assert_eq!(log.maps_of(two, PAGES), 7);
    // The one that did nothing is not suspected.
    let others = [(main, "not-chosen"), (other, "not-chosen")];
    log.assert_untraced(&others, (6 + 4) * PAGES * PAGE);
}

#[test]
fn threads_chosen_by_name_are_recorded_and_what_others_did_is_told_apart() {
    let mut scene = Scene::new();
    let main = scene.worker.pid();
    let names = ["decode-1", "decode-2", "io-1", "io-2", "encode"];
    let [one, two, io, _idle, other] = names.map(|name| scene.worker.thread(name));
    let window = scene.open(&["--thread-name", "decode-*", "--thread-name", "io-1"]);
    for command in [
        "to decode-1 map 2",
        "to decode-2 map 3",
        "to io-1 map 4",
        "to encode map 5",
        "map 6",
    ] {
        scene.worker.maps(command);
    }
    let log = window.close();
    scene.worker.assert_unharmed("a window on threads by name");
    log.assert_exact();
    assert_eq!(log.callers(), tids(&[one, two, io]));
    for (tid, maps) in [(one, 2), (two, 3), (io, 4)] {
        assert_eq!(log.maps_of(tid, PAGES), maps);
    }
    let others = [(main, "not-chosen"), (other, "not-chosen")];
    log.assert_untraced(&others, (5 + 6) * PAGES * PAGE);
}

#[test]
fn what_an_unchosen_thread_gives_back_is_no_drift() {
    let mut scene = Scene::new();
    let main = scene.worker.pid();
    let one = scene.worker.thread("one");
    scene.worker.maps("map 4");
    let window = scene.open(&["--tid", &one.to_string()]);
    scene.worker.maps("to one map 2");
    scene.worker.does("unmap 4", "unmapped");
    let log = window.close();
    scene.worker.assert_unharmed("a window on one thread");
    log.assert_exact();
    assert_eq!(log.maps_of(one, PAGES), 2);
    log.assert_untraced(&[(main, "not-chosen")], 4 * PAGES * PAGE);
}

#[test]
fn threads_that_a_chosen_one_makes_are_followed_from_their_first_call() {
    let mut scene = Scene::new();
    let one = scene.worker.thread("one");
    scene.worker.thread("other");
    let window = scene.open(&["--tid", &one.to_string()]);
    let child = scene.worker.does("to one thread child", "thread");
    scene.worker.maps("to child map 5");
    let grandchild = scene.worker.does("to child thread grandchild", "thread");
    scene.worker.maps("to grandchild map 6");
    let log = window.close();
    scene.worker.assert_unharmed("a window with new threads");
    log.assert_exact();
    assert_eq!(log.maps_of(child, PAGES), 5);
    assert_eq!(log.maps_of(grandchild, PAGES), 6);
    assert_eq!(log.json(&["info"])["threads"], 3);
    // They forwarded the commands, and made no memory call; but they ran.
    let bytes = &log.json(&["verify"])["untraced_bytes"];
    assert_eq!(*bytes, 0, "{:?}", log.untraced());
}

#[test]
fn threads_with_a_fitting_name_are_found_while_the_window_is_open() {
    let mut scene = Scene::new();
    let first = scene.worker.thread("decode-1");
    let window = scene.open(&["--thread-name", "decode-*"]);
    // The first thread makes both, and is not followed.
    let (late, other) = (
        scene.worker.thread("decode-2"),
        scene.worker.thread("other"),
    );
    window.until_follows(&mut scene.worker, "decode-2", late);
    for command in [
        "to decode-2 map 5 9",
        "to other map 6 9",
        "to decode-1 map 7 9",
    ] {
        scene.worker.maps(command);
    }
    let log = window.close();
    scene.worker.assert_unharmed("a window with new threads");
    log.assert_exact();
    assert_eq!(log.callers(), tids(&[first, late]));
    assert_eq!(log.maps_of(late, 9), 5);
    assert_eq!(log.maps_of(first, 9), 7);
    let untraced = log.untraced();
    let of_other: Vec<_> = untraced
        .iter()
        .filter(|(tid, _)| *tid == u64::from(other))
        .collect();
    assert_eq!(of_other, [&(u64::from(other), "not-chosen".to_owned())]);
}

#[test]
fn a_window_on_threads_by_tid_ends_with_the_last_of_them() {
    let mut scene = Scene::new();
    let [one, two] = ["one", "two"].map(|name| scene.worker.thread(name));
    let (first, second) = (one.to_string(), two.to_string());
    let window = scene.open(&["--tid", &first, "--tid", &second]);
    scene.worker.maps("to one map 2");
    scene.worker.loses("one");
    scene.worker.maps("to two map 3");
    scene.worker.maps("map 4");
    scene.worker.loses("two");
    let log = window.closed();
    assert_eq!(log.end(), "the threads that were followed ended");
    scene
        .worker
        .assert_unharmed("the end of the threads that were chosen");
    log.assert_exact();
    assert_eq!(log.callers(), tids(&[one, two]));
    assert_eq!(log.maps_of(one, PAGES), 2);
    assert_eq!(log.maps_of(two, PAGES), 3);
}

#[test]
fn a_window_on_threads_by_name_waits_for_others_of_that_name() {
    let mut scene = Scene::new();
    let first = scene.worker.thread("decode-1");
    let window = scene.open(&["--thread-name", "decode-*"]);
    scene.worker.maps("to decode-1 map 2");
    scene.worker.loses("decode-1");
    scene.worker.maps("map 3");
    let second = scene.worker.thread("decode-2");
    window.until_follows(&mut scene.worker, "decode-2", second);
    scene.worker.maps("to decode-2 map 5 9");
    let log = window.close();
    assert_eq!(log.end(), "the recorder was asked to stop");
    scene.worker.assert_unharmed("a window on threads by name");
    log.assert_exact();
    assert_eq!(log.callers(), tids(&[first, second]));
    assert_eq!(log.maps_of(first, PAGES), 2);
    assert_eq!(log.maps_of(second, 9), 5);
}

#[test]
fn a_window_without_any_thread_left_of_that_name_closes_when_it_is_told_to() {
    let mut scene = Scene::new();
    let first = scene.worker.thread("decode-1");
    let window = scene.open(&["--thread-name", "decode-*"]);
    scene.worker.maps("to decode-1 map 2");
    scene.worker.loses("decode-1");
    scene.worker.maps("map 3");
    assert_free(
        scene.worker.pid(),
        "the end of the only thread that was chosen",
    );
    let log = window.close();
    assert_eq!(log.end(), "the recorder was asked to stop");
    scene.worker.assert_unharmed("a window on nobody");
    log.assert_exact();
    assert_eq!(log.maps_of(first, PAGES), 2);
}
