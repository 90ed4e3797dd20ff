//! What all text output shares: sizes and times in words, aligned columns, colour, escaping.
//!
//! Knows nothing of logs or verdicts.

mod escape;
mod paint;
mod plot;
mod table;
mod units;

pub use escape::{Escaped, escaped};
pub use paint::{Paint, Tone};
pub use plot::{Series, plot, sparkline};
pub use table::Table;
pub use units::{Count, count, parse_size, percent, plural, rate, seconds, signed_size, size};

/// What is known of the place where text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Columns. Long lines are only ever cut in plots and tables of a terminal.
    pub width: usize,
    /// Whether to colour.
    pub colour: bool,
    /// Whether a person looks at a terminal; otherwise a file or a program reads.
    pub terminal: bool,
    /// So many frames of a stack are shown, and how many there are besides.
    pub depth: usize,
}

impl Screen {
    /// What a pipe or a file gets: no colour, no plots.
    pub const PLAIN: Screen = Screen {
        width: 100,
        colour: false,
        terminal: false,
        depth: Screen::DEPTH,
    };

    /// What of a stack fits before the eye.
    pub const DEPTH: usize = 32;

    /// The pen for this screen.
    #[must_use]
    pub fn paint(self) -> Paint {
        Paint::new(self.colour)
    }
}
