//! Colour, by meaning. The only place that knows which colour means what.

use std::fmt::{self, Display};

use anstyle::{AnsiColor, Style};

/// What a piece of text means to its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// The answer.
    Strong,
    /// Something is wrong.
    Bad,
    /// Something may be wrong.
    Doubtful,
    /// All is well.
    Good,
    /// There for completeness.
    Dim,
    /// No emphasis.
    Plain,
    /// The first curve of a plot, and so on.
    Curve(u8),
}

/// A pen that colours, or does not.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    colour: bool,
}

impl Paint {
    /// A pen; without `colour` it leaves text as it is.
    #[must_use]
    pub fn new(colour: bool) -> Paint {
        Paint { colour }
    }

    /// `what` in the colour of `tone`.
    pub fn tone<T: Display>(self, tone: Tone, what: T) -> impl Display {
        Painted {
            style: if self.colour {
                style(tone)
            } else {
                Style::new()
            },
            what,
        }
    }
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Strong => Style::new().bold(),
        Tone::Bad => AnsiColor::Red.on_default().bold(),
        Tone::Doubtful => AnsiColor::Yellow.on_default(),
        Tone::Good => AnsiColor::Green.on_default(),
        Tone::Dim => Style::new().dimmed(),
        Tone::Plain => Style::new(),
        Tone::Curve(0) => AnsiColor::Blue.on_default(),
        Tone::Curve(1) => AnsiColor::Cyan.on_default(),
        Tone::Curve(_) => AnsiColor::Magenta.on_default(),
    }
}

struct Painted<T> {
    style: Style,
    what: T,
}

impl<T: Display> Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.style.render())?;
        self.what.fmt(f)?;
        write!(f, "{}", self.style.render_reset())
    }
}
