//! From counts to a word: what a stack's mappings in one space make it.
//!
//! The rules are simple and careful: what is given back is never a leak, and a leak is what keeps
//! growing from its first call to the end without giving back what is old.

use serde::Serialize;

use maptrail_tracelog::types::Nanos;

use super::aggregate::Tally;
use crate::series::Buckets;
// A number in a sentence, which is all that is known of views here.
use crate::views::text::{count, plural};

/// What a stack's mappings are. Ordered worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds ever more, to the end.
    Leak,
    /// None of the others; the evidence says what would decide.
    Undecided,
    /// It holds address space that was never used.
    Reservation,
    /// It grew, and stopped.
    Plateau,
    /// One mapping or two; or what was mapped while the program started, and none after.
    OneOff,
    /// It gives back nearly all.
    Churn,
}

impl Verdict {
    /// The word in text and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Leak => "leak",
            Verdict::Undecided => "undecided",
            Verdict::Reservation => "reservation",
            Verdict::Plateau => "plateau",
            Verdict::OneOff => "one-off",
            Verdict::Churn => "churn",
        }
    }
}

/// The parts that the time from the first call to the end is cut into.
pub(super) const PARTS: usize = 4;
/// Fewer mappings held than this are no leak yet.
const LEAK_MAPPINGS: u64 = 5;
/// A leak's last part must bring at least this share of its growth (an even leak brings a third
/// between the lows of the last two parts).
const LAST_PART_SHARE: f64 = 0.1;
/// What moves by less than this share stands still.
const STILL_SHARE: f64 = 0.05;
/// Holding less than this share of what it mapped is giving back nearly all.
const CHURN_SHARE: f64 = 0.1;

/// What is there at the end, by age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Survivors {
    /// Mappings.
    pub mappings: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Mappings by the part of the time in which they were born, oldest first.
    pub by_part: [u64; PARTS],
    /// Mappings that are there, too, and left out of all these for their age.
    pub young_mappings: u64,
    /// Their bytes.
    pub young_bytes: u64,
}

/// A program's start is this part of its life, but no longer than [`STARTUP_MAX`].
const STARTUP_PART: u64 = 10;
/// See [`STARTUP_PART`].
const STARTUP_MAX: Nanos = Nanos(1_000_000_000);

/// The start of a program, as far as one subject is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Startup {
    end: Nanos,
    /// The subject is the loader at its work before the program's own. In a program that lives for
    /// milliseconds that is half of its life, and looks like growth to the end.
    by_loader: bool,
}

impl Startup {
    /// Of a program that lives from `start` to `end`.
    pub(super) fn of(start: Nanos, end: Nanos, by_loader: bool) -> Startup {
        let life = end.0.saturating_sub(start.0);
        let part = if by_loader { life } else { life / STARTUP_PART };
        Startup {
            end: Nanos(start.0.saturating_add(part.min(STARTUP_MAX.0))),
            by_loader,
        }
    }
}

/// Seconds, as exact as they matter.
fn told(seconds: f64) -> String {
    if seconds < 1.0 {
        format!("{seconds:.3} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// Judges what one subject did in one space, up to `end_bucket`. `startup` is `None` where the
/// program had been running before.
pub(super) fn judge(
    tally: &Tally,
    held: &Survivors,
    buckets: Buckets,
    end_bucket: u32,
    startup: Option<Startup>,
) -> (Verdict, String) {
    let seconds = |n: u32| f64::from(n) * buckets.width_ns() as f64 / 1e9;
    let first = tally.first_bucket(buckets);
    let span_s = seconds(end_bucket.saturating_sub(first) + 1);
    let calls = count(tally.mapped_calls);
    let mappings = count(held.mappings);
    let not_released = held.mappings + held.young_mappings;
    if not_released == 0 && tally.mapped_calls > 2 {
        return (
            Verdict::Churn,
            format!("all of its {calls} mappings were given back"),
        );
    }
    if tally.mapped_calls <= 2 {
        let words = match (tally.mapped_calls, not_released) {
            (1, 0) => "one mapping, given back".to_owned(),
            (1, _) => "one mapping, held".to_owned(),
            (_, held) => format!("{calls} mappings, {held} held"),
        };
        return (Verdict::OneOff, words);
    }
    let started = startup.filter(|startup| tally.last <= startup.end);
    if started.is_some_and(|startup| startup.by_loader) {
        return (
            Verdict::OneOff,
            format!("{mappings} mappings held, all made by the loader as the program started"),
        );
    }
    if !tally.was_accessible {
        return (
            Verdict::Reservation,
            format!("{mappings} mappings held, none of which was ever accessible"),
        );
    }
    if tally.is_untouched() {
        return (
            Verdict::Reservation,
            format!("{mappings} mappings held, no page of which is in RAM or in swap"),
        );
    }
    let lows = lows(tally, first, end_bucket);
    let share = tally.held_bytes as f64 / tally.mapped_bytes.max(1) as f64;
    if let Some(why_not) = why_no_leak(held, &lows) {
        if share <= CHURN_SHARE {
            return (
                Verdict::Churn,
                format!(
                    "{:.1} % of what its {calls} calls mapped was given back, {mappings} mappings \
                     are held",
                    100.0 * (1.0 - share),
                ),
            );
        }
        if let Some(since) = still_since(tally, first, end_bucket) {
            if started.is_some() {
                return (
                    Verdict::OneOff,
                    format!("{mappings} mappings held, all made while the program started"),
                );
            }
            return (
                Verdict::Plateau,
                format!(
                    "{mappings} mappings held, and no more than {} before the end",
                    told(seconds(end_bucket.saturating_sub(since)))
                ),
            );
        }
        return (Verdict::Undecided, why_not);
    }
    (
        Verdict::Leak,
        format!(
            "{mappings} of {calls} mappings held, born all along the last {}: {} in the four \
             quarters of it",
            told(span_s),
            held.by_part.map(|n| count(n).to_string()).join(", ")
        ),
    )
}

/// Why this is not (yet) a leak; `None` if it is one.
fn why_no_leak(held: &Survivors, lows: &[u64; PARTS]) -> Option<String> {
    let mappings = count(held.mappings);
    if held.mappings < LEAK_MAPPINGS {
        return Some(format!(
            "only {mappings} mapping{} held: a longer window would tell",
            plural(held.mappings)
        ));
    }
    let parts_with = held.by_part.iter().filter(|n| **n > 0).count();
    if parts_with < PARTS {
        return Some(format!(
            "{mappings} mappings held, born in {parts_with} of the four quarters of the time since \
             the first: a longer window would tell"
        ));
    }
    let [low0, low1, low2, low3] = *lows;
    let growth = low3.saturating_sub(low0) as f64;
    let last = low3.saturating_sub(low2) as f64;
    let rises = low0 <= low1 && low1 < low2 && low2 < low3;
    if !rises || last < LAST_PART_SHARE * growth || last < STILL_SHARE * low3 as f64 {
        return Some(format!(
            "{mappings} mappings held, but what is held goes up and down: a longer window would tell"
        ));
    }
    None
}

/// The lowest number of held bytes in each part of the time from the first call to the end.
fn lows(tally: &Tally, first: u32, end: u32) -> [u64; PARTS] {
    let span = u64::from(end.saturating_sub(first)) + 1;
    let mut lows = [0; PARTS];
    for (part, low) in (0u64..).zip(&mut lows) {
        let parts = PARTS as u64;
        let from = first + u32::try_from(span * part / parts).unwrap_or(0);
        let to = first + u32::try_from((span * (part + 1)).div_ceil(parts)).unwrap_or(0);
        *low = tally.held.values(from..to.max(from + 1)).min().unwrap_or(0);
    }
    lows
}

/// The bucket since which held bytes have stayed where they are at the end, give or take a little,
/// if that is in the first three quarters.
fn still_since(tally: &Tally, first: u32, end: u32) -> Option<u32> {
    let last = tally.held.at(end) as f64;
    let is_still = |value: u64| (value as f64 - last).abs() <= STILL_SHARE * last;
    let values: Vec<u64> = tally.held.values(first..end + 1).collect();
    let moving = values.iter().rposition(|value| !is_still(*value));
    let since = first + moving.map_or(0, |at| u32::try_from(at + 1).unwrap_or(0));
    let quarter = (end.saturating_sub(first) + 1) / 4;
    (since + quarter <= end).then_some(since)
}
