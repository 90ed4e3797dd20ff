//! Signals reach a recorded program as they would without maptrail, with their data.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::truth::Truth;
use crate::common::{
    Recording, Run, assert_exact, command, finish, recorded, until, victim, victim_command,
};

/// What the victim counts, without what depends on the run.
fn counts(truth: &Truth) -> serde_json::Value {
    let mut counts = truth.last.clone();
    let fields = counts.as_object_mut().expect("an object");
    fields.remove("pid");
    fields.remove("kinds");
    counts
}

#[test]
fn all_arrive_in_order_with_their_data() {
    for mechanism in ["seccomp", "syscall"] {
        let program = victim_command("signals 1000");
        let bare = Truth::read(&Run::of(&mut victim_command("signals 1000")).text());
        let recording = Recording::with(&["--mechanism", mechanism], &program, b"");
        assert_eq!(recording.run.code(), 0, "{}", recording.run.errors());
        assert_eq!(
            counts(&recording.truth()),
            counts(&bare),
            "under {mechanism}"
        );
        assert_eq!(counts(&bare)["wrong"], 0);
        recording.assert_exact();
    }
}

/// Starts `jobs` recorded, waits until it is ready, sends `signal` to the process that was started, as a
/// supervisor would, and gives what came of it.
fn signal_to_record(signal: Signal) -> (String, i32) {
    let dir = TempDir::new().expect("a temporary directory");
    let log = dir.path().join("log");
    let out = dir.path().join("out");
    let record = recorded(&[], &log, &command(victim("jobs"), [""; 0]));
    // A process group of its own: the signal is for one process only.
    let mut launch = command(victim("launch_as"), ["group", "--"]);
    launch.arg(record.get_program()).args(record.get_args());
    let mut child = launch
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(&out).expect("a file"))
        .spawn()
        .expect("launch_as starts");
    let read = || std::fs::read_to_string(&out).unwrap_or_default();
    until("jobs is ready", || read().contains("ready").then_some(()));
    kill(
        Pid::from_raw(i32::try_from(child.id()).expect("a pid")),
        signal,
    )
    .expect("the signal can be sent");
    if signal != Signal::SIGTERM {
        let name = signal.as_str().trim_start_matches("SIG");
        until("the program hears of it", || {
            read().contains(&format!("got {name}")).then_some(())
        });
        drop(child.stdin.take());
    }
    let status = finish(&mut child, "jobs");
    assert_exact(&log, "");
    (read(), status.code().unwrap_or(-1))
}

#[test]
fn a_sigterm_sent_to_record_reaches_the_program() {
    let (said, code) = signal_to_record(Signal::SIGTERM);
    assert!(said.contains("got TERM"), "{said}");
    assert_eq!(code, 7);
}

#[test]
fn a_sigint_sent_to_record_reaches_the_program_once() {
    let (said, code) = signal_to_record(Signal::SIGINT);
    assert_eq!(said.matches("got INT").count(), 1, "{said}");
    assert_eq!(code, 8);
}

#[test]
fn a_sighup_sent_to_record_reaches_the_program() {
    let (said, code) = signal_to_record(Signal::SIGHUP);
    assert_eq!(said.matches("got HUP").count(), 1, "{said}");
    assert_eq!(code, 8);
}
