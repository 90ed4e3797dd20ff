//! How values are written on the command line, where no library of ours knows it already.

use std::time::Duration;

use jiff::SignedDuration;
use maptrail_tracelog::types::Addr;

/// Reads a length of time: `60s`, `1m30s`, `200ms`.
///
/// # Errors
/// A sentence that says what one looks like.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|d| Duration::try_from(d).ok())
        .ok_or_else(|| format!("{text:?} is no length of time: write 60s, 1m30s or 200ms"))
}

/// Reads a length of time in which something can happen.
///
/// # Errors
/// A sentence that says what one looks like.
pub fn parse_some_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("nothing happens in no time: write 60s, 1m30s or 200ms".into()),
        duration => Ok(duration),
    }
}

/// Reads the id of a process or a thread.
///
/// # Errors
/// A sentence that says what one looks like.
pub fn parse_id(text: &str) -> Result<u32, String> {
    match text
        .parse::<i32>()
        .ok()
        .and_then(|id| u32::try_from(id).ok())
    {
        Some(id) if id > 0 => Ok(id),
        _ => Err(format!(
            "{text:?} is no id of a process or thread: write a number such as 4711 (pgrep NAME finds pids)"
        )),
    }
}

/// Reads an address: hexadecimal, with or without `0x`.
///
/// # Errors
/// A sentence that says what one looks like.
pub fn parse_address(text: &str) -> Result<Addr, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let plain = !digits.starts_with(['+', '-']);
    match u64::from_str_radix(digits, 16) {
        Ok(addr) if plain => Ok(Addr(addr)),
        _ => Err(format!(
            "{text:?} is no address: write it in hexadecimal, such as 0x7f2a10000000"
        )),
    }
}
