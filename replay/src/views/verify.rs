//! `verify`: how far the model is from the kernel's own list, and where.
//!
//! The JSON is [`Verify`] as it stands: `drift_bytes`, `untraced_bytes`, `kernel_bytes`,
//! `checkpoints`, `settled`, `lost`, and `spaces[]` with `space`, `pid`, `drift_bytes`,
//! `untraced_bytes`, `kernel_bytes`, `checkpoints`, `worst_ns`, `missing[]`, `extra[]` and `untraced[]`
//! (a range of those is `start`, `end` (hex strings), `perms`, `kernel`, `model`) and
//! `untraced_threads[]` with `tid`, `name`, `why` (`not-chosen`, `late` or `other-process`) and `ran_s`.

use std::io::{self, Write};

use maptrail_tracelog::types::Nanos;

use super::text::{Screen, Tone, count, escaped, plural, seconds, size};
use super::untraced::{named, threads_were};
use crate::check::{DriftRange, SpaceDrift, Verify};
use crate::untraced::UntracedThread;

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
    } else if verify.drift_bytes == 0 && verify.untraced_bytes > 0 {
        let answer = format!("No drift. {}.", untraced(verify));
        writeln!(out, "{}", paint.tone(Tone::Good, answer))?;
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
    if verify.untraced_bytes > 0 && verify.drift_bytes > 0 {
        writeln!(out, "{}; that is no drift.", untraced(verify))?;
    } else if verify.untraced_bytes == 0 && untraced_threads(verify).next().is_some() {
        let threads = threads_were(untraced_threads(verify).count() as u64);
        writeln!(out, "{threads} not traced, and left no difference.")?;
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
    for space in &verify.spaces {
        write_space(out, space)?;
    }
    Ok(())
}

/// The threads that can have changed something.
fn untraced_threads(verify: &Verify) -> impl Iterator<Item = &UntracedThread> {
    let threads = verify.spaces.iter().flat_map(|s| &s.untraced_threads);
    threads.filter(|thread| thread.ran())
}

/// `12.0 MiB differ because 2 threads were not traced: ...`.
fn untraced(verify: &Verify) -> String {
    format!(
        "{} differ because {} not traced: {}",
        size(verify.untraced_bytes),
        threads_were(untraced_threads(verify).count() as u64),
        named(untraced_threads(verify))
    )
}

fn write_space(out: &mut dyn Write, space: &SpaceDrift) -> io::Result<()> {
    let whose = format!("\nSpace {} (process {})", space.space, space.pid);
    if space.drift_bytes > 0 {
        let at = seconds(Nanos(space.worst_ns.unwrap_or(0)));
        writeln!(
            out,
            "{whose}: {} at {at}, the worst of {} checkpoints",
            size(space.drift_bytes),
            space.checkpoints,
        )?;
        write_ranges(
            out,
            "the kernel has, the model has not (or has otherwise)",
            &space.missing,
        )?;
        write_ranges(out, "the model has, the kernel has not", &space.extra)?;
    }
    if space.untraced_bytes > 0 {
        let bytes = size(space.untraced_bytes);
        writeln!(out, "{whose}: {bytes} by threads that were not traced")?;
        write_ranges(
            out,
            "the kernel has it so, the model otherwise",
            &space.untraced,
        )?;
    }
    Ok(())
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
