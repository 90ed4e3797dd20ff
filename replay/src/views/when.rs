//! Moments as people name them: `12.5s` after the start, `-5s` before the end, or an instant.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use maptrail_tracelog::types::Nanos;

use super::text::seconds;

/// A moment on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After the window's start.
    FromStart(Nanos),
    /// Before the window's end.
    FromEnd(Nanos),
    /// On the wall clock.
    At(Timestamp),
}

/// A moment that the log knows nothing about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct OutsideWindow {
    /// When the window opened, on the wall clock.
    start: Timestamp,
    /// How long it was open.
    length: Nanos,
}

impl fmt::Display for OutsideWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the time is outside the window, which is {} long from {:.3}: choose one from 0s to {:.3}s",
            seconds(self.length),
            self.start,
            self.length.as_secs_f64()
        )
    }
}

impl When {
    /// The same moment in nanoseconds from the start of a window that opened at `wall_start_ns`
    /// (Unix epoch) and was `length` long.
    ///
    /// # Errors
    /// If the moment lies before or after the window.
    pub fn resolve(self, wall_start_ns: u64, length: Nanos) -> Result<Nanos, OutsideWindow> {
        let start = Timestamp::from_nanosecond(i128::from(wall_start_ns)).unwrap_or_default();
        let outside = OutsideWindow { start, length };
        let at = match self {
            When::FromStart(t) => Some(t.0),
            When::FromEnd(t) => length.0.checked_sub(t.0),
            When::At(t) => u64::try_from(t.as_nanosecond() - start.as_nanosecond()).ok(),
        };
        match at {
            Some(t) if t <= length.0 => Ok(Nanos(t)),
            _ => Err(outside),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<When, String> {
        if let Ok(d) = text.parse::<SignedDuration>() {
            let ns = d.as_nanos().unsigned_abs();
            let ns = u64::try_from(ns).map_err(|_| format!("{text:?} is too long a time"))?;
            let before_end = d.is_negative() || text.trim_start().starts_with('-');
            return Ok(if before_end {
                When::FromEnd(Nanos(ns))
            } else {
                When::FromStart(Nanos(ns))
            });
        }
        text.parse().map(When::At).map_err(|_| {
            format!(
                "{text:?} is no time: write 12.5s (from the start), -5s (from the end) or an instant such as 2026-01-31T03:00:00Z"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_700_000_000_000_000_000;
    const LENGTH: Nanos = Nanos(60_000_000_000);

    fn at(text: &str) -> Result<u64, String> {
        let when: When = text.parse()?;
        when.resolve(START, LENGTH)
            .map(|n| n.0)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn moments_are_understood() {
        assert_eq!(at("0s"), Ok(0));
        assert_eq!(at("12.5s"), Ok(12_500_000_000));
        assert_eq!(at("-5s"), Ok(55_000_000_000));
        assert_eq!(at("-0s"), Ok(60_000_000_000));
        assert_eq!(at("1m"), Ok(60_000_000_000));
        assert_eq!(at("200ms"), Ok(200_000_000));
        assert_eq!(at("2023-11-14T22:13:30Z"), Ok(10_000_000_000));
        assert_eq!(at("2023-11-14T23:13:30+01:00"), Ok(10_000_000_000));
    }

    #[test]
    fn others_are_refused_with_the_window() {
        for text in [
            "61s",
            "-61s",
            "2023-11-14T22:13:19Z",
            "2023-11-14T22:14:21Z",
        ] {
            let error = at(text).expect_err("outside");
            assert!(error.contains("from 0s to 60.000s"), "{error}");
        }
        assert!(at("soon").expect_err("no time").contains("12.5s"));
    }
}
