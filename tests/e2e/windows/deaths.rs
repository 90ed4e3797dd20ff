//! The target exits, or is killed, at any instant of attach, window and detach. maptrail ends by itself, says
//! what it recorded or why it did not, and leaves nobody behind.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Scene;
use crate::common::attach::Started;
use crate::common::{assert_whole_and_no_drift, finish, until_or};

const ROUNDS: u64 = 30;
/// Within this time of a round's beginning its target ends, milliseconds.
const WITHIN_MS: u64 = 60;

/// How a target ends.
#[derive(Clone, Copy)]
enum End {
    Exit,
    Kill,
}

/// Processes with this variable in their environment, which all that maptrail starts inherit.
fn processes_with(variable: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let marked = all.filter(|process| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|other| other == variable.as_bytes())
    });
    marked
        .map(|process| {
            let stat = fs::read_to_string(process.path().join("stat"));
            stat.unwrap_or_default()
        })
        .collect()
}

/// One round: attach to a new target, which ends `after` so long, counted from the beginning or from the
/// moment at which the window was open. True if something was recorded.
fn round(end: End, opened: bool, after: Duration, chosen: bool) -> bool {
    let mut scene = Scene::new();
    scene.worker.thread("idle");
    for name in ["busy-1", "busy-2"] {
        scene.worker.thread(name);
        scene.worker.does(&format!("to {name} churn"), "churns");
    }
    let mark = format!("{}-{}", std::process::id(), scene.worker.pid());
    let mut options = vec!["--for", "50ms", "--max-slowdown", "0"];
    if chosen {
        options.extend(["--thread-name", "busy-*"]);
    }
    let mut attach = scene.attach(&options);
    attach.env("MAPTRAIL_TEST_MARK", &mark);
    let mut front = Started::of(&mut attach, scene.dir.path().join("window"));
    if opened {
        front.until_it_says("recording");
    }
    thread::sleep(after);
    match end {
        End::Exit => scene.worker.tell("exit 7"),
        End::Kill => scene.worker.program.signal(Signal::SIGKILL),
    }
    let status = finish(&mut front.child, "attach to a target that ended");
    let said = front.said();
    let when = format!("ended {after:?} after the begin (open: {opened}): {status:?}: {said}");
    assert!(!said.contains("panicked"), "{when}");
    let ended = finish(&mut scene.worker.program.child, "the target");
    match end {
        End::Exit => assert_eq!(ended.code(), Some(7), "{when}"),
        End::Kill => assert_eq!(ended.signal(), Some(9), "{when}"),
    }
    let mark = format!("MAPTRAIL_TEST_MARK={mark}");
    until_or(
        || processes_with(&mark).is_empty().then_some(()),
        || format!("nobody is left behind: {:?}; {when}", processes_with(&mark)),
    );
    let recorded = match status.code() {
        Some(0) => true,
        Some(2) => false,
        _ => panic!("{when}"),
    };
    if recorded {
        assert!(said.contains("memory calls in"), "{when}");
        assert_whole_and_no_drift(&scene.log(), &when);
    } else {
        let causes = ["it ended", "no such process", "it has ended already"];
        assert!(causes.iter().any(|cause| said.contains(cause)), "{when}");
        assert!(!scene.log().exists(), "a log was left; {when}");
    }
    recorded
}

fn rounds(end: End, chosen: bool) {
    let mut recorded = 0;
    for number in 0..ROUNDS {
        // Every instant once, and not in order.
        let after = Duration::from_millis(number * 7 % ROUNDS * WITHIN_MS / ROUNDS);
        let opened = number % 2 == 1;
        let made = round(end, opened, after, chosen);
        assert!(made || !opened, "an open window was denied after {after:?}");
        recorded += usize::from(made);
    }
    eprintln!("{recorded} of {ROUNDS} windows recorded something");
}

#[test]
fn a_target_that_exits_at_any_instant_is_told_of() {
    rounds(End::Exit, false);
}

#[test]
fn a_target_that_is_killed_at_any_instant_is_told_of() {
    rounds(End::Kill, false);
}

#[test]
fn a_target_that_exits_beside_its_chosen_threads_is_told_of() {
    rounds(End::Exit, true);
}

#[test]
fn a_target_that_is_killed_with_its_chosen_threads_is_told_of() {
    rounds(End::Kill, true);
}
