//! `verify`: how far the model is from the kernel's own list, and where.
//!
//! The JSON is [`Verify`] as it stands: `drift_bytes`, `untraced_bytes`, `kernel_bytes`,
//! `checkpoints`, `settled`, `lost`, and `spaces[]` with `space`, `pid`, `drift_bytes`,
//! `kernel_bytes`, `checkpoints`, `worst_ns`, `missing[]` and `extra[]`; a range of those is `start`,
//! `end` (hex strings), `perms`, `kernel`, `model`.

use std::io::{self, Write};

use maptrail_tracelog::types::Nanos;

use super::text::{Screen, Tone, count, escaped, plural, seconds, size};
use crate::check::{DriftRange, SpaceDrift, Verify};

/// Ranges that are listed for each space.
const LISTED: usize = 20;

/// Writes the result for people.
///
/// # Errors
/// Those of the output.
pub fn write_text(out: &mut dyn Write, verify: &Verify, screen: Screen) -> io::Result<()> {
    let paint = screen.paint();
    let compared = format!(
        "{} checkpoint{} in {} address space{}",
        count(verify.checkpoints),
        plural(verify.checkpoints),
        count(verify.spaces.len() as u64),
        plural(verify.spaces.len() as u64),
    );
    if verify.checkpoints == 0 {
        let nothing = "Nothing to compare: no space has a checkpoint after its first.";
        writeln!(out, "{}", paint.tone(Tone::Doubtful, nothing))?;
    } else if verify.drift_bytes == 0 {
        let answer = "No drift: the replayed address space equals the kernel's, byte for byte.";
        writeln!(out, "{}", paint.tone(Tone::Good, answer))?;
    } else {
        let answer = format!(
            "Drift: {} differ between the replay and the kernel.",
            size(verify.drift_bytes)
        );
        writeln!(out, "{}", paint.tone(Tone::Bad, answer))?;
    }
    writeln!(out, "Compared at {compared}.")?;
    if verify.kernel_bytes > 0 {
        let grown = size(verify.kernel_bytes);
        writeln!(
            out,
            "The kernel itself mapped {grown} (stacks that grew); that is no drift."
        )?;
    }
    if verify.untraced_bytes > 0 {
        let untraced = size(verify.untraced_bytes);
        writeln!(
            out,
            "Threads that were not traced changed {untraced}; that is no drift."
        )?;
    }
    if verify.settled > 0 {
        let (settled, s) = (count(verify.settled), plural(verify.settled));
        let were = if s.is_empty() { "was" } else { "were" };
        writeln!(
            out,
            "{settled} call{s} {were} settled by looking at the kernel."
        )?;
    }
    if verify.lost > 0 {
        let lost = format!(
            "{} events were lost: drift is to be expected.",
            count(verify.lost)
        );
        writeln!(out, "{}", paint.tone(Tone::Bad, lost))?;
    }
    for space in verify.spaces.iter().filter(|s| s.drift_bytes > 0) {
        write_space(out, space)?;
    }
    Ok(())
}

fn write_space(out: &mut dyn Write, space: &SpaceDrift) -> io::Result<()> {
    let at = seconds(Nanos(space.worst_ns.unwrap_or(0)));
    writeln!(
        out,
        "\nSpace {} (process {}): {} at {at}, the worst of {} checkpoints",
        space.space,
        space.pid,
        size(space.drift_bytes),
        space.checkpoints,
    )?;
    write_ranges(
        out,
        "the kernel has, the model has not (or has otherwise)",
        &space.missing,
    )?;
    write_ranges(out, "the model has, the kernel has not", &space.extra)
}

fn write_ranges(out: &mut dyn Write, what: &str, ranges: &[DriftRange]) -> io::Result<()> {
    if ranges.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {what}:")?;
    for r in ranges.iter().take(LISTED) {
        let bytes = size(r.end.0.saturating_sub(r.start.0));
        writeln!(
            out,
            "    {:x}-{:x}  {} {bytes}",
            r.start.0, r.end.0, r.perms
        )?;
        for (side, has) in [("kernel", &r.kernel), ("model ", &r.model)] {
            if let Some(has) = has {
                writeln!(out, "      {side} {}", escaped(has))?;
            }
        }
    }
    match ranges.len().checked_sub(LISTED) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(out, "    and {more} more; --json lists them all"),
    }
}
