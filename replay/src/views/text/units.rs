//! Sizes, counts, rates and times as people write them.

use std::fmt;

use bytesize::ByteSize;
use maptrail_tracelog::types::Nanos;

/// A size in binary units: `1.5 GiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// A change of size: `+1.5 GiB`, `-4.0 KiB`, `0 B`.
#[must_use]
pub fn signed_size(bytes: i64) -> String {
    let sign = match bytes {
        0 => "",
        1.. => "+",
        _ => "-",
    };
    format!("{sign}{}", size(bytes.unsigned_abs()))
}

/// A growth per minute: `+400.0 MiB/min`.
#[must_use]
pub fn rate(bytes_per_min: f64) -> String {
    // A float beyond the range of i64 saturates.
    format!("{}/min", signed_size(bytes_per_min.round() as i64))
}

/// Reads `64KiB`, `1.5 GiB`, `400MB` or a plain number of bytes.
///
/// # Errors
/// A sentence that says what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    text.trim()
        .parse::<ByteSize>()
        .map(|s| s.as_u64())
        .map_err(|_| {
            format!("{text:?} is no size: write 64KiB, 100MiB, 1.5GiB or a number of bytes")
        })
}

/// Seconds with as many digits as help: `0.042 s`, `12.5 s`, `3 min 20 s`.
#[must_use]
pub fn seconds(time: Nanos) -> String {
    let s = time.as_secs_f64();
    if s >= 119.5 {
        let whole = s.round() as u64;
        match (whole / 3600, whole / 60 % 60, whole % 60) {
            (0, min, s) => format!("{min} min {s} s"),
            (h, min, _) => format!("{h} h {min} min"),
        }
    } else if s >= 9.995 {
        format!("{s:.1} s")
    } else {
        format!("{s:.3} s")
    }
}

/// Part of a whole: `93 %`; `-` where there is no whole.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let share = part as f64 * 100.0 / whole as f64;
    match share {
        s if s > 0.0 && s < 1.0 => "<1 %".to_owned(),
        s if s < 100.0 => format!("{:.0} %", s.floor()),
        s => format!("{s:.0} %"),
    }
}

/// What makes a noun plural where it is not one thing.
#[must_use]
pub fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// A number with separated thousands.
#[derive(Clone, Copy, Debug)]
pub struct Count(u64);

/// A number with separated thousands: `12,345`.
#[must_use]
pub fn count(n: u64) -> Count {
    Count(n)
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() + digits.len() / 3);
        for (i, c) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(c);
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("1.5 GiB", 3 << 29),
            ("4096", 4096),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        assert!(parse_size("much").is_err());
        assert_eq!(parse_size(&size(3 << 29)), Ok(3 << 29));
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0).to_string(), "0");
        assert_eq!(count(999).to_string(), "999");
        assert_eq!(count(1_234_567).to_string(), "1,234,567");
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(1, 1000), "<1 %");
        assert_eq!(percent(0, 1000), "0 %");
        assert_eq!(percent(0, 0), "-");
        assert_eq!(signed_size(-4096), "-4.0 KiB");
        assert_eq!(rate(419_430_400.0), "+400.0 MiB/min");
        assert_eq!(seconds(Nanos(42_000_000)), "0.042 s");
        assert_eq!(seconds(Nanos(12_500_000_000)), "12.5 s");
        assert_eq!(seconds(Nanos(200_000_000_000)), "3 min 20 s");
        assert_eq!(seconds(Nanos(7_260_000_000_000)), "2 h 1 min");
    }
}
