//! Processes that the target makes while a window is open, and processes that share its memory.

use serde_json::Value;

use super::{Log, PAGE, PAGES, Scene, is_map};
use crate::common::attach::assert_free;
use crate::common::number;

/// The ways in which `worker` makes one that gets memory of its own.
const COPIES: [&str; 3] = ["fork", "vfork", "silent"];
/// How often each of them maps.
const MAPS: usize = 4;

/// Has the worker make a child, gives the child's pid, and whether it found itself traced.
fn child(scene: &mut Scene, who: &str, way: &str) -> (u32, bool) {
    scene.worker.tell(&format!("{who}child {way}"));
    let (_, answer) = scene.worker.answer();
    let words: Vec<&str> = answer.split(' ').collect();
    match words[..] {
        ["child", pid, found @ ("traced" | "free")] => {
            (pid.parse().expect("a pid"), found == "traced")
        }
        _ => panic!("{way}: {answer}"),
    }
}

/// How often process `pid` is told to have mapped, in whatever space.
fn maps_of_process(log: &Log, pid: u32) -> usize {
    let events = log.events();
    let theirs = events.iter().filter(|event| event["pid"] == pid);
    theirs.filter(|event| is_map(event, PAGES)).count()
}

/// Two children made in one window.
struct Family {
    scene: Scene,
    log: Log,
    children: [u32; 2],
}

/// Has the first thread and another one make a child each, in a window with these options, and asserts that
/// both find themselves traced, or both do not.
fn family(way: &str, options: &[&str], expected: bool) -> Family {
    let mut scene = Scene::new();
    scene.worker.thread("one");
    let window = scene.open(options);
    let children = ["", "to one "].map(|who| {
        let (pid, traced) = child(&mut scene, who, way);
        assert_eq!(traced, expected, "a child made by {who}{way} was traced");
        pid
    });
    scene.worker.maps("map 2");
    let log = window.close();
    scene.worker.assert_unharmed("a window with children");
    assert_eq!(maps_of_process(&log, scene.worker.pid()), 2, "{way}");
    Family {
        scene,
        log,
        children,
    }
}

impl Family {
    fn assert_children_map(&self, times: usize) {
        for pid in self.children {
            assert_eq!(maps_of_process(&self.log, pid), times, "child {pid}");
        }
    }

    fn spaces(&self) -> u64 {
        number(&self.log.json(&["info"])["spaces"])
    }
}

#[test]
fn children_run_untraced_from_their_first_instruction() {
    for way in COPIES {
        let family = family(way, &[], false);
        family.log.assert_exact();
        family.log.assert_untraced(&[], 0);
        let events = family.log.events();
        let of_parent = |event: &Value| event["pid"] == family.scene.worker.pid();
        assert!(events.iter().all(of_parent), "{way}");
        assert_eq!(family.spaces(), 1, "{way}");
    }
}

#[test]
fn children_that_share_the_memory_run_untraced_and_what_they_do_is_told_apart() {
    let family = family("share", &[], false);
    family.log.assert_exact();
    family.assert_children_map(0);
    assert_eq!(family.spaces(), 1);
    let others = family.children.map(|pid| (pid, "other-process"));
    let bytes = 2 * MAPS as u64 * PAGES * PAGE;
    family.log.assert_untraced(&others, bytes);
}

#[test]
fn children_that_are_to_be_followed_are_recorded_in_spaces_of_their_own() {
    for way in COPIES {
        let family = family(way, &["--follow-forks"], true);
        family.log.assert_exact();
        family.log.assert_untraced(&[], 0);
        family.assert_children_map(MAPS);
        assert_eq!(family.spaces(), 3, "{way}");
        let verify = family.log.json(&["verify"]);
        let spaces = verify["spaces"].as_array().expect("spaces");
        for pid in family.children {
            let own = spaces.iter().filter(|space| space["pid"] == pid);
            assert_eq!(own.count(), 1, "{way}: {verify:#}");
        }
    }
}

#[test]
fn children_that_share_the_memory_and_are_followed_are_recorded_in_its_space() {
    let family = family("share", &["--follow-forks"], true);
    family.log.assert_exact();
    family.log.assert_untraced(&[], 0);
    family.assert_children_map(MAPS);
    assert_eq!(family.spaces(), 1);
}

#[test]
fn children_that_were_followed_are_set_free_with_their_parent() {
    let mut scene = Scene::new();
    let window = scene.open(&["--follow-forks"]);
    let children =
        ["twin", "triplet"].map(|name| scene.worker.does(&format!("copy {name}"), "copy"));
    let grandchild = scene.worker.does("to twin copy grandchild", "copy");
    scene.worker.maps("to twin map 2");
    scene.worker.maps("to triplet map 3");
    scene.worker.maps("map 4");
    let log = window.close();
    for pid in children.into_iter().chain([grandchild]) {
        assert_free(pid, "a window that followed it");
    }
    scene.worker.maps("to twin map 1");
    scene
        .worker
        .assert_unharmed("a window that followed its children");
    log.assert_exact();
    log.assert_untraced(&[], 0);
    assert_eq!(children.map(|pid| maps_of_process(&log, pid)), [2, 3]);
    assert_eq!(maps_of_process(&log, scene.worker.pid()), 4);
}

#[test]
fn what_another_process_does_to_memory_that_it_shares_is_told_apart() {
    let mut scene = Scene::new();
    let sharer = scene.worker.does("sharer twin", "sharer");
    scene.worker.maps("to twin map 3");
    let window = scene.open(&[]);
    scene.worker.maps("to twin map 5");
    scene.worker.maps("map 2");
    let log = window.close();
    scene
        .worker
        .assert_unharmed("a window on half of what shares the memory");
    log.assert_exact();
    assert_eq!(log.maps_of(scene.worker.pid(), PAGES), 2);
    assert_eq!(log.maps_of(sharer, PAGES), 0);
    log.assert_untraced(&[(sharer, "other-process")], 5 * PAGES * PAGE);
}
