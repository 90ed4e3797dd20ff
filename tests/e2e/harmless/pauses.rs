//! How long a target is held up by attach and detach: figures, for 1, 64 and 512 threads. No limit is asserted.

use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Attached, Victim, rounds};
use crate::common::{number, until};

/// The longest pause of any thread since the last reset, in microseconds.
fn pause(victim: &mut Victim) -> u64 {
    let report: Value = serde_json::from_str(&victim.ask("report")).expect("JSON");
    number(&report["pause_us"])
}

/// What happens in `during` to the longest pause.
fn pause_of(victim: &mut Victim, during: impl FnOnce(&Victim)) -> u64 {
    victim.ask("reset");
    during(victim);
    // A thread that is still held notes its pause when it wakes.
    thread::sleep(Duration::from_millis(20));
    pause(victim)
}

fn told(mut pauses: Vec<u64>) -> String {
    pauses.sort_unstable();
    let ms = |us: u64| us as f64 / 1000.0;
    format!(
        "median {:.1} ms, maximum {:.1} ms",
        ms(pauses[pauses.len() / 2]),
        ms(pauses[pauses.len() - 1])
    )
}

#[test]
fn a_target_goes_on_after_the_pauses_of_attach_and_detach() {
    const WINDOW: Duration = Duration::from_millis(100);
    let rounds = rounds(100, 3);
    for threads in [1, 64, 512] {
        let mut victim = Victim::start(&format!("pauses {threads}"));
        let (mut alone, mut opened, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            alone.push(pause_of(&mut victim, |_| thread::sleep(WINDOW)));
            let mut attached = None;
            opened.push(pause_of(&mut victim, |victim| {
                let window = Attached::start(victim.pid(), "100ms");
                window.recording().expect("a window");
                attached = Some(window);
            }));
            whole.push(pause_of(&mut victim, |_| {
                let window = attached.take().expect("a window");
                window.closed().expect("an end in order");
            }));
            victim.ask("reset");
            until("every thread goes on", || {
                let report: Value = serde_json::from_str(&victim.ask("report")).expect("JSON");
                (number(&report["rounds"]) > 0).then_some(())
            });
        }
        eprintln!(
            "{threads} threads, {rounds} windows; longest pause of any thread\n  \
             without:            {}\n  until recording:    {}\n  from then to detach: {}",
            told(alone),
            told(opened),
            told(whole)
        );
    }
}
