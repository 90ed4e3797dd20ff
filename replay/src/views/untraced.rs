//! Threads that were not traced, in a sentence.

use std::cmp::Reverse;
use std::io::{self, Write};

use maptrail_tracelog::record::NotTraced;
use maptrail_tracelog::types::Nanos;

use super::text::{Paint, Tone, count, escaped, plural, seconds};
use crate::untraced::UntracedThread;

/// Threads that are called by name, at most.
const NAMED: usize = 4;

/// `2 threads were`, or `1 thread was`.
pub(super) fn threads_were(n: u64) -> String {
    let were = if n == 1 { "was" } else { "were" };
    format!("{} thread{} {were}", count(n), plural(n))
}

/// Says that what so many threads did is missing.
pub(super) fn write_warning(out: &mut dyn Write, threads: u64, paint: Paint) -> io::Result<()> {
    if threads == 0 {
        return Ok(());
    }
    let whose = if threads == 1 { "its" } else { "their" };
    let missing = format!(
        "{} not recorded, or not all the time: {whose} mappings are not here.",
        threads_were(threads)
    );
    writeln!(out, "{}", paint.tone(Tone::Doubtful, missing))
}

/// `worker/71 (not chosen, 1.2 s of CPU), io/72 (late, CPU time unknown) and 3 more`: those first that
/// ran most, or nobody knows how long.
pub(super) fn named<'a>(threads: impl IntoIterator<Item = &'a UntracedThread>) -> String {
    let mut threads: Vec<&UntracedThread> = threads.into_iter().collect();
    threads.sort_by_key(|thread| (thread.ran.is_some(), Reverse(thread.ran), thread.tid));
    let shown: Vec<String> = threads
        .iter()
        .take(NAMED)
        .map(|thread| name(thread))
        .collect();
    match threads.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {} more", shown.join(", "), count(more as u64)),
    }
}

fn name(thread: &UntracedThread) -> String {
    let why = match thread.why {
        NotTraced::NotChosen => "not chosen",
        NotTraced::Late => "late",
        NotTraced::OtherProcess => "in another process",
    };
    let ran = match thread.ran {
        Some(Nanos(0)) => "did not run".to_owned(),
        Some(ran) => format!("{} of CPU", seconds(ran)),
        None => "CPU time unknown".to_owned(),
    };
    format!("{}/{} ({why}, {ran})", escaped(&thread.name), thread.tid)
}
