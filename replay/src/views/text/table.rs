//! Columns that line up.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

/// Which side of its column a cell leans on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// Rows of cells, printed with every column as wide as its widest cell. Cells hold no colour codes:
/// their width is counted in what a terminal shows.
#[derive(Clone, Debug)]
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose columns lean left (`<`) or right (`>`), such as `"<>>"`.
    #[must_use]
    pub fn new(sides: &str) -> Table {
        Table {
            sides: sides
                .chars()
                .map(|c| if c == '>' { Side::Right } else { Side::Left })
                .collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The rows as lines, two blanks between columns, none at the end of a line.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(column));
            cells.map(|c| c.width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.sides.len()).map(width).collect();
        self.rows
            .iter()
            .map(|row| self.line(row, &widths))
            .collect()
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, &side), &width) in row.iter().zip(&self.sides).zip(widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            let pad = " ".repeat(width.saturating_sub(cell.width()));
            match side {
                Side::Left => line.extend([cell.as_str(), &pad]),
                Side::Right => line.extend([pad.as_str(), cell]),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// Writes the lines, each after `indent`.
    pub fn write(&self, out: &mut dyn Write, indent: &str) -> io::Result<()> {
        for line in self.lines() {
            writeln!(out, "{indent}{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_what_a_terminal_shows() {
        let mut t = Table::new("<>");
        t.row(["大".into(), "1".into()]);
        t.row(["abc".into(), "1000".into()]);
        assert_eq!(t.lines(), ["大      1", "abc  1000"]);
    }
}
