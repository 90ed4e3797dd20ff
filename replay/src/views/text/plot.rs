//! Curves over time, drawn in characters.

use std::fmt::Write;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Widget};

use super::{Paint, Tone};

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it shows.
    pub name: &'static str,
    /// Time and value, ascending by time, in the units of the axes.
    pub points: Vec<(f64, f64)>,
}

/// The colours of curves; [`tone_of`] leads back to a meaning.
const COLOURS: [Color; 3] = [Color::Blue, Color::Cyan, Color::Magenta];

fn tone_of(colour: Color) -> Tone {
    COLOURS
        .iter()
        .position(|&c| c == colour)
        .map_or(Tone::Plain, |i| Tone::Curve(i as u8))
}

/// Draws curves over the same axes, `width` columns by `height` lines, with labels for the
/// ends and the middle of either axis. Time begins at 0; the other axis has the ends given.
#[must_use]
pub fn plot(
    series: &[Series],
    (width, height): (u16, u16),
    x_max: f64,
    (y_min, y_max): (f64, f64),
    x_label: impl Fn(f64) -> String,
    y_label: impl Fn(f64) -> String,
    paint: Paint,
) -> Vec<String> {
    let labels = |min: f64, max: f64, label: &dyn Fn(f64) -> String| {
        [min, (min + max) / 2.0, max].map(label)
    };
    let datasets = series
        .iter()
        .zip(COLOURS.iter().cycle())
        .map(|(s, &colour)| {
            Dataset::default()
                .marker(Marker::Braille)
                .graph_type(GraphType::Line)
                .style(Style::new().fg(colour))
                .data(&s.points)
        })
        .collect();
    let chart = Chart::new(datasets)
        .x_axis(
            Axis::default()
                .bounds([0.0, x_max])
                .labels(labels(0.0, x_max, &x_label)),
        )
        .y_axis(
            Axis::default()
                .bounds([y_min, y_max])
                .labels(labels(y_min, y_max, &y_label)),
        );
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    chart.render(area, &mut buffer);
    (0..height).map(|y| line(&buffer, y, paint)).collect()
}

/// One line of the picture, coloured run by run, without blanks at its end.
fn line(buffer: &Buffer, y: u16, paint: Paint) -> String {
    let mut runs: Vec<(Tone, String)> = Vec::new();
    for x in 0..buffer.area.width {
        let Some(cell) = buffer.cell((x, y)) else {
            continue;
        };
        let tone = tone_of(cell.fg);
        match runs.last_mut() {
            Some((last, text)) if *last == tone => text.push_str(cell.symbol()),
            _ => runs.push((tone, cell.symbol().to_owned())),
        }
    }
    while let Some((_, text)) = runs.last_mut() {
        text.truncate(text.trim_end().len());
        if !text.is_empty() {
            break;
        }
        runs.pop();
    }
    let mut line = String::new();
    for (tone, text) in runs {
        // Writing to a string cannot fail.
        let _ = write!(line, "{}", paint.tone(tone, text));
    }
    line
}

/// Eight heights of a bar.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A curve of one line: each value as a bar between 0 and the largest.
#[must_use]
pub fn sparkline(values: &[u64]) -> String {
    let max = values.iter().copied().max().unwrap_or(0).max(1);
    values
        .iter()
        .map(|&v| {
            let height = (u128::from(v) * 7).div_ceil(u128::from(max));
            BARS.get(height as usize).copied().unwrap_or('█')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_fills_its_picture_from_corner_to_corner() {
        let ramp = Series {
            name: "ramp",
            points: (0..=100).map(|i| (f64::from(i), f64::from(i))).collect(),
        };
        let picture = plot(
            &[ramp],
            (40, 8),
            100.0,
            (0.0, 100.0),
            |x| format!("{x} s"),
            |y| format!("{y} B"),
            Paint::new(false),
        );
        assert_eq!(picture.len(), 8);
        let drawn = |l: &str| l.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c));
        assert!(
            picture
                .first()
                .is_some_and(|l| l.contains("100 B") && drawn(l))
        );
        assert!(picture.last().is_some_and(|l| l.contains("100 s")));
        assert!(picture.iter().all(|l| l.chars().count() <= 40));
    }

    #[test]
    fn bars_stand_between_zero_and_the_largest() {
        assert_eq!(sparkline(&[0, 1, 50, 100]), "▁▂▅█");
        assert_eq!(sparkline(&[0, 0]), "▁▁");
        assert_eq!(sparkline(&[u64::MAX]), "█");
    }
}
