//! `timeline`: sizes over time, as a plot on a terminal and as numbers elsewhere. Of a process that was
//! running before, and may be large, the change since the window opened is what matters.
//!
//! # JSON
//! `window_s`, `step_s` (seconds between points), `has_resident`, `peak` and `points[]` with
//! `reserved_bytes`, `committed_bytes` and `resident_bytes` (`null` where it is unknown) of all spaces
//! together, `spaces[]` with `space`, `pid` and `points[]` (of many, those that had most accessible),
//! `spaces_left_out` (how many others there were), and `stacks[]`, greatest first: `stack`,
//! `peak_bytes`, `held_bytes[]` (one for each point) and `frames[]`.

use std::io::{self, Write};

use maptrail_tracelog::types::{Nanos, StackId};
use serde::Serialize;

use super::text::{
    Paint, Screen, Series, Table, Tone, escaped, plot, seconds, signed_size, size, sparkline,
};
use super::untraced::write_warning;
use crate::symbols::{Frame, Names, path_of};
use crate::untraced;
use crate::usage::{Sizes, SpaceUsage, Usage};
use crate::world::{Began, World};

/// Lines of the plot.
const PLOT_HEIGHT: u16 = 18;
/// The plot grows no wider than this, columns.
const PLOT_WIDTH: usize = 400;
/// Points where no plot is drawn.
const PLAIN_POINTS: u32 = 40;
/// Points in JSON.
const JSON_POINTS: u32 = 200;
/// Columns of a stack's small curve.
const SPARK_WIDTH: usize = 32;
/// A reservation this many times the accessible memory flattens all other curves, and is left out.
const DWARFS: u64 = 8;

/// How many points to ask for: for this screen, or for JSON.
#[must_use]
pub fn points(screen: Screen, json: bool) -> u32 {
    match (json, screen.terminal) {
        (true, _) => JSON_POINTS,
        // A character is two dots wide.
        (false, true) => {
            u32::try_from(screen.width.clamp(20, PLOT_WIDTH) * 2).unwrap_or(JSON_POINTS)
        }
        (false, false) => PLAIN_POINTS,
    }
}

/// The whole answer, ready to be printed.
#[derive(Clone, Debug, Serialize)]
pub struct Timeline<'a> {
    window_s: f64,
    step_s: f64,
    has_resident: bool,
    peak: Sizes,
    points: &'a [Sizes],
    spaces: &'a [SpaceUsage],
    spaces_left_out: u64,
    #[serde(skip)]
    untraced_threads: u64,
    /// What there was before; `None` if the recording began with the program.
    #[serde(skip)]
    before: Option<Sizes>,
    stacks: Vec<StackView<'a>>,
}

#[derive(Clone, Debug, Serialize)]
struct StackView<'a> {
    stack: StackId,
    peak_bytes: u64,
    held_bytes: &'a [u64],
    frames: Vec<Frame>,
}

impl StackView<'_> {
    fn label(&self) -> String {
        match path_of(&self.frames) {
            Some(path) => escaped(&path).to_string(),
            None => "(no stack was taken)".to_owned(),
        }
    }
}

impl<'a> Timeline<'a> {
    /// Puts names to what [`crate::usage::usage`] found.
    pub fn new(usage: &'a Usage, world: &World, names: &mut Names) -> Timeline<'a> {
        let stacks = usage
            .stacks
            .iter()
            .map(|s| StackView {
                stack: s.stack,
                peak_bytes: s.peak_bytes,
                held_bytes: &s.held_bytes,
                frames: names.stack(world, s.stack, None),
            })
            .collect();
        Timeline {
            window_s: usage.window_s,
            step_s: usage.step_s,
            has_resident: usage.has_resident,
            peak: usage.peak,
            points: &usage.points,
            spaces: &usage.spaces,
            spaces_left_out: usage.spaces_left_out,
            untraced_threads: untraced::count(&world.untraced),
            before: (world.space_infos().first())
                .filter(|info| info.began == Began::Before)
                .map(|_| usage.start),
            stacks,
        }
    }

    /// Writes it for people: a plot on a terminal, numbers elsewhere.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_text(&self, out: &mut dyn Write, screen: Screen) -> io::Result<()> {
        if self.spaces.is_empty() {
            return writeln!(out, "Nothing to draw: no program was recorded.");
        }
        if screen.terminal {
            self.write_plot(out, screen)?;
        } else {
            self.write_numbers(out)?;
        }
        write_warning(out, self.untraced_threads, screen.paint())?;
        self.write_stacks(out, screen)
    }

    fn write_numbers(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = Table::new(">>>>");
        table.row(["time", "reserved", "committed", "resident"].map(str::to_owned));
        for (i, sizes) in self.points.iter().enumerate() {
            // A point says how things stood when its step ended.
            let at = ((i + 1) as f64 * self.step_s).min(self.window_s);
            table.row(self.row(format!("{at:.3} s"), sizes, String::new()));
        }
        table.row(self.row("peak".to_owned(), &self.peak, "unknown".to_owned()));
        table.write(out, "")
    }

    fn row(&self, name: String, sizes: &Sizes, unknown: String) -> [String; 4] {
        [
            name,
            self.with_change(sizes.reserved_bytes, |before| Some(before.reserved_bytes)),
            self.with_change(sizes.committed_bytes, |before| Some(before.committed_bytes)),
            (sizes.resident_bytes).map_or(unknown, |bytes| {
                self.with_change(bytes, |before| before.resident_bytes)
            }),
        ]
    }

    /// `10.4 GiB`, or `10.4 GiB (+400.0 MiB)` if there was something before.
    fn with_change(&self, bytes: u64, of: impl Fn(&Sizes) -> Option<u64>) -> String {
        match self.before.as_ref().and_then(of) {
            Some(before) => {
                let change = bytes.wrapping_sub(before) as i64;
                format!("{} ({})", size(bytes), signed_size(change))
            }
            None => size(bytes),
        }
    }

    fn write_plot(&self, out: &mut dyn Write, screen: Screen) -> io::Result<()> {
        let paint = screen.paint();
        let dwarfed = self.peak.reserved_bytes / DWARFS > self.peak.committed_bytes;
        let mut curves = Vec::new();
        if !dwarfed {
            curves.push(self.curve("reserved", |s| Some(s.reserved_bytes)));
        }
        curves.push(self.curve("committed", |s| Some(s.committed_bytes)));
        if self.has_resident {
            curves.push(self.curve("resident", |s| s.resident_bytes));
        }
        write_legend(out, &curves, paint)?;
        let highest = curves
            .iter()
            .flat_map(|c| c.points.iter().map(|p| p.1))
            .fold(1.0, f64::max);
        let lowest = match self.before {
            Some(_) => (curves.iter().flat_map(|c| c.points.iter().map(|p| p.1)))
                .fold(highest - 1.0, f64::min),
            None => 0.0,
        };
        let width = u16::try_from(screen.width.clamp(20, PLOT_WIDTH)).unwrap_or(80);
        let lines = plot(
            &curves,
            (width, PLOT_HEIGHT),
            self.window_s.max(f64::MIN_POSITIVE),
            (lowest, highest),
            |t| seconds(Nanos((t * 1e9) as u64)),
            |bytes| size(bytes as u64),
            paint,
        );
        for line in lines {
            writeln!(out, "{line}")?;
        }
        let [_, reserved, committed, resident] =
            self.row(String::new(), &self.peak, "unknown".to_owned());
        if dwarfed {
            writeln!(
                out,
                "Not drawn: up to {reserved} reserved, most of it never accessible."
            )?;
        }
        writeln!(
            out,
            "Peaks: {reserved} reserved, {committed} committed, {resident} resident."
        )
    }

    fn curve(&self, name: &'static str, of: impl Fn(&Sizes) -> Option<u64>) -> Series {
        let at = |i: usize| ((i + 1) as f64 * self.step_s).min(self.window_s);
        Series {
            name,
            points: (self.points.iter().enumerate())
                .filter_map(|(i, sizes)| Some((at(i), of(sizes)? as f64)))
                .collect(),
        }
    }

    fn write_stacks(&self, out: &mut dyn Write, screen: Screen) -> io::Result<()> {
        if self.stacks.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nWhat the greatest stacks held:")?;
        // Where all programs have ended, all ends are 0, which says nothing.
        let some_end = self.stacks.iter().any(|s| s.held_bytes.last() > Some(&0));
        let mut table = Table::new("<>><");
        for stack in &self.stacks {
            let now = stack.held_bytes.last().copied().unwrap_or(0);
            table.row([
                sparkline(&thin(stack.held_bytes, SPARK_WIDTH)),
                format!("peak {}", size(stack.peak_bytes)),
                if some_end {
                    format!("end {}", size(now))
                } else {
                    String::new()
                },
                stack.label(),
            ]);
        }
        for line in table.lines() {
            // Names of C++ functions can be very long; a terminal would wrap them.
            let shown = if screen.terminal {
                screen.width
            } else {
                usize::MAX
            };
            let line: String = line.chars().take(shown).collect();
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}

fn write_legend(out: &mut dyn Write, curves: &[Series], paint: Paint) -> io::Result<()> {
    for (i, curve) in (0..).zip(curves) {
        let gap = if i == 0 { "" } else { "   " };
        write!(
            out,
            "{gap}{}",
            paint.tone(Tone::Curve(i), format_args!("── {}", curve.name))
        )?;
    }
    writeln!(out)
}

/// At most `count` values: the greatest of each group of neighbours.
fn thin(values: &[u64], count: usize) -> Vec<u64> {
    let group = values.len().div_ceil(count).max(1);
    values
        .chunks(group)
        .map(|c| c.iter().copied().max().unwrap_or(0))
        .collect()
}
