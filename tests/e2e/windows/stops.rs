//! Job control of a target: its parent sees the same stops and continues as without a window, and a stopped
//! process is recorded, and stays stopped.

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{PAGES, Scene, Worker, states};
use crate::common::attach::tracer_of;
use crate::common::until_or;

/// What its parent, which is this process, is told of a worker now.
fn told(worker: &Worker) -> WaitStatus {
    let pid = Pid::from_raw(worker.pid().cast_signed());
    let all = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED;
    waitpid(pid, Some(all)).expect("it is a child")
}

/// The next thing that its parent is told, which must be this.
fn assert_told(worker: &Worker, expected: &str) {
    let status = until_or(
        || Some(told(worker)).filter(|status| *status != WaitStatus::StillAlive),
        || {
            format!(
                "the parent is told of {expected}: {:?}",
                states(worker.pid())
            )
        },
    );
    let told = match status {
        WaitStatus::Stopped(_, signal) => format!("stopped by {signal}"),
        WaitStatus::Continued(_) => "continued".to_owned(),
        other => format!("{other:?}"),
    };
    assert_eq!(told, expected);
}

fn stop(worker: &Worker, signal: Signal) {
    worker.program.signal(signal);
    assert_told(worker, &format!("stopped by {signal}"));
}

/// Continues a stopped worker, and asserts that its parent is told of that once, and of nothing else.
fn go_on(worker: &mut Worker) {
    worker.program.signal(Signal::SIGCONT);
    assert_told(worker, "continued");
    worker.maps("to one map 1");
    worker.maps("map 1");
    assert_eq!(told(worker), WaitStatus::StillAlive, "something else");
}

/// Asserts that nobody traces it, and that all of its threads stand. (One that is let go while the process is
/// stopped goes from the one stop to the other by itself.)
fn assert_stopped_and_free(worker: &Worker) {
    assert_eq!(tracer_of(worker.pid()), None);
    until_or(
        || {
            states(worker.pid())
                .iter()
                .all(|state| *state == 'T')
                .then_some(())
        },
        || format!("it is stopped: {:?}", states(worker.pid())),
    );
}

fn scene() -> Scene {
    let mut scene = Scene::new();
    scene.worker.thread("one");
    scene
}

#[test]
fn a_stopped_process_is_recorded_and_stays_stopped() {
    let mut scene = scene();
    stop(&scene.worker, Signal::SIGSTOP);
    let window = scene.open(&[]);
    let log = window.close();
    assert_stopped_and_free(&scene.worker);
    assert_eq!(told(&scene.worker), WaitStatus::StillAlive, "a second stop");
    log.assert_exact();
    assert_eq!(log.events().len(), 0);
    go_on(&mut scene.worker);
    scene
        .worker
        .assert_unharmed("a window while it was stopped");
}

#[test]
fn a_process_that_was_stopped_before_goes_on_in_the_window() {
    let mut scene = scene();
    let pid = scene.worker.pid();
    stop(&scene.worker, Signal::SIGSTOP);
    let window = scene.open(&[]);
    go_on(&mut scene.worker);
    let log = window.close();
    scene
        .worker
        .assert_unharmed("a window that began while it was stopped");
    log.assert_exact();
    assert_eq!(log.maps_of(pid, PAGES), 1);
}

#[test]
fn a_process_is_stopped_and_goes_on_in_the_window_as_without_one() {
    let mut scene = scene();
    let pid = scene.worker.pid();
    let rounds = |scene: &mut Scene| {
        for _ in 0..5 {
            stop(&scene.worker, Signal::SIGSTOP);
            go_on(&mut scene.worker);
        }
    };
    rounds(&mut scene);
    let window = scene.open(&[]);
    rounds(&mut scene);
    let log = window.close();
    scene.worker.assert_unharmed("a window with stops");
    rounds(&mut scene);
    log.assert_exact();
    assert_eq!(log.maps_of(pid, PAGES), 5);
}

#[test]
fn a_process_that_was_stopped_in_the_window_is_left_stopped() {
    let mut scene = scene();
    let pid = scene.worker.pid();
    let window = scene.open(&[]);
    scene.worker.maps("map 3");
    stop(&scene.worker, Signal::SIGSTOP);
    let log = window.close();
    assert_stopped_and_free(&scene.worker);
    assert_eq!(told(&scene.worker), WaitStatus::StillAlive, "a second stop");
    go_on(&mut scene.worker);
    scene
        .worker
        .assert_unharmed("a window in which it was stopped");
    log.assert_exact();
    assert_eq!(log.maps_of(pid, PAGES), 3);
}
