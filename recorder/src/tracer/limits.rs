//! What closes a window before its time: limits that the user set, and those that keep a running
//! program from harm.

use maptrail_tracelog::types::Tid;

use super::Tracer;
use crate::footprint::{self, MOST_MEMORY};
use crate::sys::timer;

/// Ticks between two looks at what the recording costs (one second).
const LOOK_TICKS: u64 = 10;
/// What a stop costs its thread besides being served, nanoseconds: to stop, to wake the tracer, to wake
/// up again. Measured with a tracer that does nothing: 8 µs on one core, more on two.
const STOP_NS: u64 = 10_000;

/// Percent; more is not told apart.
const HUNDREDFOLD: u64 = 10_000;

/// Limits of a window.
#[derive(Clone, Copy, Default)]
pub struct Limits {
    /// How long it is, nanoseconds; until the program ends if `None`.
    pub window_ns: Option<u64>,
    /// How long the log may grow, bytes.
    pub log_bytes: Option<u64>,
    /// By how much any thread may be slowed down, in percent of its time.
    pub slowdown_percent: Option<u64>,
    /// How much memory the recorder may take, bytes.
    pub memory: Option<u64>,
}

impl Limits {
    /// Those of a window on a program that runs already, before the user's.
    #[must_use]
    pub fn of_attached() -> Limits {
        Limits {
            memory: Some(MOST_MEMORY),
            ..Limits::default()
        }
    }
}

/// What stops cost threads since the last look.
#[derive(Default)]
pub struct Cost {
    ticks: u64,
    since_ns: u64,
}

impl Tracer {
    /// Charges a thread for a stop that ended at `now`.
    pub(super) fn charge(&mut self, tid: Tid, now: u64) {
        let waited = now.saturating_sub(self.batch_since);
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.cost_ns += waited + STOP_NS;
        }
    }

    /// What was taken from threads before this moment is not counted.
    pub(super) fn cost_begins(&mut self) {
        self.cost.since_ns = self.now().0;
        self.batch_since = timer::monotonic_ns();
        for thread in self.threads.values_mut() {
            thread.cost_ns = 0;
        }
    }

    /// The limit that was reached, in words; looked for at each tick.
    pub(super) fn limit_reached(&mut self) -> Option<String> {
        let limits = self.task.limits;
        let written = self.journal.as_ref().map_or(0, |journal| journal.written());
        if limits.log_bytes.is_some_and(|limit| written >= limit) {
            return Some("the log reached the size of --max-log".into());
        }
        self.cost.ticks += 1;
        if !self.cost.ticks.is_multiple_of(LOOK_TICKS) {
            return None;
        }
        if limits
            .memory
            .is_some_and(|limit| footprint::memory_now() > limit)
        {
            let most = MOST_MEMORY >> 20;
            return Some(format!(
                "the recorder itself took more than {most} MiB of memory"
            ));
        }
        self.too_slow(limits.slowdown_percent)
    }

    fn too_slow(&mut self, limit: Option<u64>) -> Option<String> {
        let now = self.now().0;
        let passed = now.saturating_sub(std::mem::replace(&mut self.cost.since_ns, now));
        let costs = self.threads.iter_mut();
        let (cost, tid) = costs
            .map(|(tid, thread)| (std::mem::take(&mut thread.cost_ns), *tid))
            .max()?;
        let percent = slowdown(cost, passed);
        let limit = limit.filter(|limit| percent > *limit)?;
        let name = crate::proc::comm(tid);
        let how = match percent {
            ..HUNDREDFOLD => format!("by {percent} %"),
            _ => "a hundredfold or more".to_owned(),
        };
        Some(format!(
            "following it slowed thread {tid} ({name}) down {how}, and --max-slowdown is \
             {limit} %: a higher limit, 0 for none, or fewer threads (--tid, --thread-name) let it go on"
        ))
    }
}

/// By how much a thread takes longer that stood still for `stopped` of the time that `passed`, in
/// percent of what it would have taken.
fn slowdown(stopped: u64, passed: u64) -> u64 {
    let stopped = stopped.min(passed);
    let left = (passed - stopped).max(passed / 100).max(1);
    stopped.saturating_mul(100) / left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowdown_is_what_comes_on_top() {
        assert_eq!(slowdown(0, 1_000_000_000), 0);
        assert_eq!(slowdown(500, 1000), 100);
        assert_eq!(slowdown(200, 1200), 20);
        assert_eq!(
            slowdown(5000, 1000),
            10_000,
            "never more than a hundredfold"
        );
        assert_eq!(slowdown(0, 0), 0);
    }
}
