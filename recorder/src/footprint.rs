//! What the recorder itself takes of the machine, and how it steps back when memory is short.

use std::fs;

use maptrail_tracelog::record::Footprint;
use maptrail_tracelog::types::PAGE;

use crate::sys::usage;

/// More memory than this the recorder of a running program never takes, bytes: its window is closed.
pub const MOST_MEMORY: u64 = 512 << 20;

/// When memory is short the kernel shall end this process before those of others. Raising one's own score
/// needs no right.
pub fn be_first_to_go(rank: Rank) {
    let score = match rank {
        Rank::First => "1000",
        // In a small group of processes a few points would not tell them apart.
        Rank::Second => "500",
    };
    // Where /proc is read-only the kernel decides by size, and the recorder is small.
    let _ = fs::write("/proc/self/oom_score_adj", score);
}

/// Asks for the CPU before others get it, where that may be asked for: somebody stands still until this process
/// has run. In a session of its own it is a group of its own to the scheduler (sched_autogroup, see sched(7)),
/// and one that sleeps much was seen to wait for seconds beside groups that never sleep (Linux 6.18).
pub fn be_served_soon() {
    // Without the right to, or without such groups, all stays as it is.
    let _ = fs::write("/proc/self/autogroup", "-20");
}

/// Which of the recorder's two processes goes first when memory is short: the front process, whose end
/// makes the tracer leave the target in order.
#[derive(Clone, Copy, Debug)]
pub enum Rank {
    /// Before all others.
    First,
    /// After that.
    Second,
}

/// What this process took so far.
#[must_use]
pub fn so_far() -> Footprint {
    let (peak_rss, cpu_ns) = usage::of_this_process();
    Footprint { peak_rss, cpu_ns }
}

/// Memory of this process in RAM, bytes; 0 if nobody tells.
#[must_use]
pub fn memory_now() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|n| n.parse().ok());
    pages.unwrap_or(0u64).saturating_mul(PAGE)
}
