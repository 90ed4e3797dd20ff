//! The recorder is killed with SIGKILL at any instant of attach, window and detach.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Attached, BROKEN_OFF_BY_A_KILL, BUSY, Victim, attach, rounds, threads};
use crate::common::attach::until_free;
use crate::common::{finish, until};

/// The process that traces the target, or the one that is about to.
fn tracer(attached: &Attached, target: Pid) -> Option<Pid> {
    let tracing = threads(target).iter().find_map(|thread| {
        thread
            .field("TracerPid")
            .parse()
            .ok()
            .filter(|&pid| pid != 0)
    });
    let starting = || {
        let front = attached.pid();
        let children = fs::read_to_string(format!("/proc/{front}/task/{front}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    };
    tracing.or_else(starting).map(Pid::from_raw)
}

/// Whether a process is gone, or waits for somebody to take note of its end.
fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
}

/// xorshift64: the same instants on every run.
struct Dice(u64);

impl Dice {
    /// A number from 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        f64::from(u32::try_from(self.0 >> 32).expect("32 bits")) / f64::from(u32::MAX)
    }
}

/// Whom the rounds kill, in turn.
#[derive(Clone, Copy)]
enum Doomed {
    Front,
    Tracer,
    Both,
}

#[test]
fn a_front_process_killed_at_any_instant_leaves_its_target_unharmed() {
    killed_again_and_again(BUSY, &[Doomed::Front], rounds(500, 6));
}

#[test]
fn a_tracer_killed_at_any_instant_leaves_its_target_unharmed() {
    let line = format!("unharmed 0 {BROKEN_OFF_BY_A_KILL} shielded");
    killed_again_and_again(&line, &[Doomed::Tracer, Doomed::Both], rounds(500, 6));
}

fn killed_again_and_again(line: &str, whom: &[Doomed], rounds: usize) {
    const WINDOW: &str = "100ms";
    let mut victim = Victim::start(line);
    let target = victim.pid();
    let begin = Instant::now();
    let attached = Attached::start(target, WINDOW);
    attached.recording().expect("a window");
    // Attach and window, and as much again as attach takes for the detach.
    let length = begin.elapsed() * 2 + Duration::from_millis(100);
    attached.closed().expect("an end in order");
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut without_tracer = 0;
    for round in 0..rounds {
        let mut attached = Attached::start(target, WINDOW);
        // Squared, so that many fall into the attaching.
        let after = length.mul_f64(dice.roll().powi(2));
        thread::sleep(after);
        let (front, tracer) = (attached.pid(), tracer(&attached, target));
        without_tracer += usize::from(tracer.is_none());
        let doomed = match whom[round % whom.len()] {
            Doomed::Front => [Some(front), None],
            Doomed::Tracer => [tracer, None],
            Doomed::Both => [tracer, Some(front)],
        };
        for pid in doomed.into_iter().flatten() {
            // It may have ended by itself.
            kill(pid, Signal::SIGKILL).ok();
        }
        finish(&mut attached.child, "attach, killed");
        // A tracer whose front process was killed goes on to the end of its window.
        if let Some(tracer) = tracer {
            until("the tracer ends", || has_ended(tracer).then_some(()));
        }
        until_free(target.as_raw().cast_unsigned());
        victim.assert_alive(&format!("{line}: killed in round {round} after {after:?}"));
        attach(&mut victim, "10ms");
    }
    thread::sleep(Duration::from_millis(100));
    eprintln!(
        "{line}: {rounds} kills within {length:?}, {without_tracer} of them before there was a tracer or \
         after it had gone: {}",
        victim.assert_unharmed()
    );
}
