//! The text of `leaks`, for somebody who has been woken up: first what leaks, how much, how fast and
//! from where; then the stacks that prove it; then, in a line each, what was looked at and cleared.

use std::cmp::Reverse;
use std::io::{self, Write};

use rustc_hash::FxHashMap;

use super::{Entry, Report};
use crate::leaks::Verdict;
use crate::views::stack::{Marks, write_stack};
use crate::views::text::{
    Paint, Screen, Table, Tone, count, escaped, percent, plural, rate, seconds, signed_size, size,
};
use crate::views::untraced::write_warning;
use maptrail_tracelog::types::Nanos;

/// How much to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Leaks with their frames, the most important others in a line each.
    Leaks,
    /// All with their frames.
    All,
}

/// Lines for stacks that are no leaks.
const FOLDED: usize = 12;
/// From less time than this no rate per minute is told: it would be mostly invention.
const SHORTEST_RATED_S: f64 = 1.0;
/// The first column, and what lies under it.
const INDENT: &str = "    ";

impl Report {
    /// Writes it for people.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_text(
        &self,
        out: &mut dyn Write,
        screen: Screen,
        detail: Detail,
    ) -> io::Result<()> {
        let paint = screen.paint();
        if self.spaces == 0 {
            return writeln!(out, "Nothing to judge: no program was recorded.");
        }
        self.write_answer(out, paint)?;
        write_warning(out, self.untraced_threads, paint)?;
        let in_full = |e: &&Entry| detail == Detail::All || e.verdict == Verdict::Leak;
        let mut marks = Marks::default();
        for entry in self.stacks.iter().filter(in_full) {
            entry.write_full(out, screen, &mut marks)?;
        }
        let folded: Vec<&Entry> = self.stacks.iter().filter(|e| !in_full(e)).collect();
        self.write_folded(out, &folded, screen)?;
        if self.rows_left_out > 0 {
            let more = format!("And {} more, left out by --top.", self.rows_left_out);
            writeln!(out, "\n{}", paint.tone(Tone::Dim, more))?;
        }
        marks.write_legend(out, paint)
    }

    /// The first sentences.
    fn write_answer(&self, out: &mut dyn Write, paint: Paint) -> io::Result<()> {
        let window = seconds(Nanos((self.window_s * 1e9) as u64));
        let growth = &self.growth;
        let whose = match self.spaces {
            0 | 1 => "the address space".to_owned(),
            n => format!("{n} address spaces together"),
        };
        let grew = match growth.reserved_bytes {
            0 => format!("In {window} {whose} did not grow"),
            n if n < 0 => format!("In {window} {whose} shrank by {}", size(n.unsigned_abs())),
            n => format!("In {window} {whose} grew by {}", size(n.unsigned_abs())),
        };
        // Without two samples nothing is known of RAM, and 0 would be misread.
        let ram = match growth.resident_bytes {
            0 => String::new(),
            n => format!(", {} in RAM", signed_size(n)),
        };
        let grew = format!(
            "{grew} ({} accessible{ram})",
            signed_size(growth.committed_bytes)
        );
        if self.leak_rows == 0 {
            let answer = format!("No leak found in {window}.");
            writeln!(out, "{}", paint.tone(Tone::Good, answer))?;
            writeln!(out, "{grew}.")?;
            return self.write_doubts(out, paint);
        }
        // The worst comes first; there may be none to show, by `--top 0`.
        let worst = self.stacks.first();
        let answer = match worst {
            Some(worst) => format!(
                "Leak: {} holds {} in {}, and {}.",
                escaped(&worst.label),
                size(worst.held_bytes),
                worst.mappings(),
                worst.pace(),
            ),
            None => {
                let verb = if self.leak_rows == 1 { "holds" } else { "hold" };
                let rows = self.rows(self.leak_rows, "");
                format!("Leak: {rows} {verb} {}.", size(self.leaked_bytes))
            }
        };
        writeln!(out, "{}", paint.tone(Tone::Bad, answer))?;
        let Some(worst) = worst else {
            return writeln!(out, "{grew}.");
        };
        match u64::try_from(growth.reserved_bytes) {
            Ok(grown) if grown > 0 => {
                let explained = match worst.held_bytes < grown {
                    true => percent(worst.held_bytes, grown),
                    false => "all".to_owned(),
                };
                writeln!(out, "{grew}; this {} explains {explained} of it.", self.by)?;
            }
            _ => writeln!(out, "{grew}.")?,
        }
        let others = self.leak_rows - 1;
        if others > 0 {
            let held = size(self.leaked_bytes.saturating_sub(worst.held_bytes));
            let verb = if others == 1 { "leaks" } else { "leak" };
            let others = self.rows(others, "other ");
            writeln!(out, "{others} {verb} too: {held} together.")?;
        }
        Ok(())
    }

    fn write_doubts(&self, out: &mut dyn Write, paint: Paint) -> io::Result<()> {
        let (n, held) = (self.undecided_rows, size(self.undecided_bytes));
        let verbs = match n {
            0 => return Ok(()),
            1 => ("is", "holds"),
            _ => ("are", "hold"),
        };
        let doubt = format!(
            "{} {} undecided and {} {held}: a longer recording would tell.",
            self.rows(n, ""),
            verbs.0,
            verbs.1
        );
        writeln!(out, "{}", paint.tone(Tone::Doubtful, doubt))
    }

    /// `3 other stacks`.
    fn rows(&self, n: usize, which: &str) -> String {
        format!("{n} {which}{}{}", self.by, plural(n as u64))
    }

    fn write_folded(
        &self,
        out: &mut dyn Write,
        folded: &[&Entry],
        screen: Screen,
    ) -> io::Result<()> {
        if folded.is_empty() {
            return Ok(());
        }
        let paint = screen.paint();
        writeln!(out, "\nNot leaking, or not known to:")?;
        let lines = Folded::lines(folded);
        let shown = lines.get(..FOLDED).unwrap_or(&lines);
        let mut table = Table::new("<>><");
        for line in shown {
            let count = match line.entries {
                1 => String::new(),
                n => format!("  ({} {}s)", count(n), self.by),
            };
            table.row([
                line.verdict.name().to_owned(),
                format!("{} held", size(line.held_bytes)),
                format!(
                    "{} given back",
                    percent(line.released_bytes, line.mapped_bytes)
                ),
                format!("{}{count}", escaped(line.label)),
            ]);
        }
        for (line, folded) in table.lines().iter().zip(shown) {
            let width = if screen.terminal {
                screen.width
            } else {
                usize::MAX
            };
            let line: String = line
                .chars()
                .take(width.saturating_sub(INDENT.len()))
                .collect();
            let tone = match folded.verdict {
                Verdict::Undecided => Tone::Doubtful,
                _ => Tone::Dim,
            };
            writeln!(out, "{INDENT}{}", paint.tone(tone, line))?;
        }
        let shown: u64 = shown.iter().map(|line| line.entries).sum();
        match (folded.len() as u64).saturating_sub(shown) {
            0 => Ok(()),
            more => {
                let more = format!("and {} more; --all shows everything", count(more));
                writeln!(out, "{INDENT}{}", paint.tone(Tone::Dim, more))
            }
        }
    }
}

/// A line for those of a verdict that are called the same: told apart, they would say no more.
struct Folded<'a> {
    verdict: Verdict,
    label: &'a str,
    entries: u64,
    held_bytes: u64,
    mapped_bytes: u64,
    released_bytes: u64,
}

impl<'a> Folded<'a> {
    /// Worst verdict first, then what holds most.
    fn lines(entries: &[&'a Entry]) -> Vec<Folded<'a>> {
        let mut lines: Vec<Folded<'a>> = Vec::new();
        let mut known = FxHashMap::default();
        for entry in entries {
            let label = entry.label.as_str();
            let at = *known.entry((entry.verdict, label)).or_insert(lines.len());
            if at == lines.len() {
                lines.push(Folded {
                    verdict: entry.verdict,
                    label,
                    entries: 0,
                    held_bytes: 0,
                    mapped_bytes: 0,
                    released_bytes: 0,
                });
            }
            if let Some(line) = lines.get_mut(at) {
                line.entries += 1;
                line.held_bytes = line.held_bytes.saturating_add(entry.held_bytes);
                line.mapped_bytes = line.mapped_bytes.saturating_add(entry.mapped_bytes);
                line.released_bytes = line.released_bytes.saturating_add(entry.released_bytes);
            }
        }
        lines.sort_by_key(|line| (line.verdict, Reverse(line.held_bytes)));
        lines
    }
}

impl Entry {
    /// The numbers on one line, why, and the frames.
    fn write_full(&self, out: &mut dyn Write, screen: Screen, marks: &mut Marks) -> io::Result<()> {
        let paint = screen.paint();
        let tone = match self.verdict {
            Verdict::Leak => Tone::Bad,
            Verdict::Undecided => Tone::Doubtful,
            _ => Tone::Dim,
        };
        writeln!(
            out,
            "\n{}  {} held  {}  {} given back",
            paint.tone(tone, self.verdict.name().to_uppercase()),
            paint.tone(Tone::Strong, size(self.held_bytes)),
            if self.held_bytes > 0 {
                self.holding()
            } else {
                format!("{} mapped", count(self.mapped_calls))
            },
            percent(self.released_bytes, self.mapped_bytes),
        )?;
        writeln!(
            out,
            "{INDENT}{}",
            paint.tone(Tone::Dim, escaped(&self.evidence))
        )?;
        match self.stack {
            Some(_) => write_stack(out, INDENT, &self.frames, screen, marks),
            None => writeln!(out, "{INDENT}{}", escaped(&self.label)),
        }
    }

    /// Of what, how fast, and where: `1,600 × 256.0 KiB  +400.0 MiB/min  400.0 MiB in RAM`.
    fn holding(&self) -> String {
        let grown = match self.is_rated() {
            true => rate(self.growth_bytes_per_min),
            false => format!("+{} in {}", size(self.held_bytes), self.span()),
        };
        format!("{}  {grown}  {}", self.times(), self.ram())
    }

    /// What is known of the pages held.
    fn ram(&self) -> String {
        let Some(resident) = self.resident_bytes else {
            return "RAM not looked at".to_owned();
        };
        let least = if self.looked_at_bytes < self.held_bytes {
            "at least "
        } else {
            ""
        };
        let swapped = match self.swapped_bytes {
            0 => String::new(),
            bytes => format!(" and {} in swap", size(bytes)),
        };
        format!("{least}{} in RAM{swapped}", size(resident))
    }

    fn is_rated(&self) -> bool {
        self.growth_span_s >= SHORTEST_RATED_S
    }

    fn span(&self) -> String {
        seconds(Nanos((self.growth_span_s * 1e9) as u64))
    }

    /// `1,600 × 256.0 KiB`.
    fn times(&self) -> String {
        let about = if self.is_even() { "" } else { "about " };
        format!(
            "{} × {about}{}",
            count(self.held_mappings),
            size(self.typical())
        )
    }

    /// `1,600 mappings of 256.0 KiB each`.
    fn mappings(&self) -> String {
        let n = count(self.held_mappings);
        match (self.held_mappings, self.is_even()) {
            (1, _) => "1 mapping".to_owned(),
            (_, true) => format!("{n} mappings of {} each", size(self.typical())),
            (_, false) => format!("{n} mappings of about {}", size(self.typical())),
        }
    }

    fn typical(&self) -> u64 {
        if self.is_even() {
            self.median_bytes
        } else {
            self.held_bytes / self.held_mappings.max(1)
        }
    }

    /// Whether every mapping held is as large as the middle one.
    fn is_even(&self) -> bool {
        self.held_mappings.checked_mul(self.median_bytes) == Some(self.held_bytes)
    }

    fn pace(&self) -> String {
        if !self.is_rated() {
            return format!("grew to that in {}", self.span());
        }
        format!(
            "grows by {}",
            rate(self.growth_bytes_per_min).trim_start_matches('+')
        )
    }
}
