//! Attach and detach, again and again: afterwards all is as before.

use std::fs;

use nix::unistd::Pid;

use super::{BUSY, BUSY_WITH_SIGCHLD, Victim, attach, rounds, threads};
use crate::common::attach::until_free;
use crate::common::{until, until_or};

#[test]
fn a_busy_target_sees_nothing_of_many_windows() {
    for line in [BUSY, BUSY_WITH_SIGCHLD] {
        let mut victim = Victim::start(line);
        let rounds = rounds(500, 8);
        for round in 0..rounds {
            attach(&mut victim, "50ms");
            victim.assert_alive(&format!("{line}: after window {round}"));
            until_free(victim.pid().as_raw().cast_unsigned());
        }
        eprintln!("{line}: {rounds} windows: {}", victim.assert_unharmed());
    }
}

/// What attaching must leave alone in a process at rest: a line for each thread, then the mappings.
fn traits(of: Pid) -> String {
    let mut all = String::new();
    for thread in threads(of) {
        let tid = thread.tid;
        for name in [
            "State",
            "SigPnd",
            "ShdPnd",
            "SigBlk",
            "SigIgn",
            "SigCgt",
            "NoNewPrivs",
            "Seccomp",
            "CapEff",
            "Cpus_allowed",
            "TracerPid",
        ] {
            all += &format!("{tid} {name} {}\n", thread.field(name));
        }
        // A sleep goes on as restart_syscall; its stack pointer and its place in the code stay.
        let call = fs::read_to_string(format!("/proc/{of}/task/{tid}/syscall")).expect("a thread");
        let words: Vec<&str> = call.split_whitespace().collect();
        let place = &words[words.len().saturating_sub(2)..];
        all += &format!("{tid} stack and code {place:?}\n");
    }
    all + &fs::read_to_string(format!("/proc/{of}/maps")).expect("maps")
}

#[test]
fn a_target_at_rest_is_the_same_after_many_windows() {
    let mut victim = Victim::start("quiet");
    let before = until("every thread rests", || {
        let traits = traits(victim.pid());
        (!traits.contains("State R")).then_some(traits)
    });
    let rounds = rounds(1000, 15);
    for round in 0..rounds {
        attach(&mut victim, "10ms");
        victim.assert_alive(&format!("after window {round}"));
        until_free(victim.pid().as_raw().cast_unsigned());
    }
    // A thread that was let go may not have come back to its rest yet.
    until_or(
        || (traits(victim.pid()) == before).then_some(()),
        || format!("{before}\nis now\n{}", traits(victim.pid())),
    );
    victim.assert_unharmed();
}
