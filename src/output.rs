//! Where results, warnings and errors go: results to stdout, all else to stderr.

use std::env;
use std::io::{self, IsTerminal, StdoutLock, Write};

use clap::ColorChoice;
use maptrail_replay::views::text::{Screen, escaped};

/// Columns where a terminal does not tell.
const WIDTH: usize = 100;

/// The way out for results.
#[derive(Debug)]
pub struct Output {
    screen: Screen,
    out: io::BufWriter<StdoutLock<'static>>,
}

impl Output {
    /// Looks at what stdout is.
    #[must_use]
    pub fn new(color: ColorChoice) -> Output {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let wanted = env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && env::var_os("TERM").is_none_or(|v| v != "dumb");
        Output {
            screen: Screen {
                width: terminal_size::terminal_size_of(&stdout)
                    .map_or(WIDTH, |(w, _)| usize::from(w.0)),
                colour: match color {
                    ColorChoice::Auto => terminal && wanted,
                    ColorChoice::Always => true,
                    ColorChoice::Never => false,
                },
                terminal,
                depth: Screen::DEPTH,
            },
            out: io::BufWriter::with_capacity(1 << 16, stdout.lock()),
        }
    }

    /// What is known of where results go.
    #[must_use]
    pub fn screen(&self) -> Screen {
        self.screen
    }

    /// Writes results through `print` and makes sure that they arrive. A reader that has gone, as in
    /// `| head`, has what it wanted: what the command found out stands all the same.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn write(
        &mut self,
        print: impl FnOnce(&mut dyn Write, Screen) -> io::Result<()>,
    ) -> io::Result<()> {
        match print(&mut self.out, self.screen).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }
}

/// Says on stderr what went wrong, cause after cause.
pub fn complain(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors tell their cause in their own words already.
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    say(format_args!("{text}"));
}

/// Writes results to stderr, for a command whose stdout is not its own.
pub fn report(print: impl FnOnce(&mut dyn Write, Screen) -> io::Result<()>) {
    // If stderr is gone there is nobody left to tell.
    let _ = print(&mut io::stderr(), Screen::PLAIN);
}

/// Says on stderr how things stand.
pub fn tell(text: &str) {
    say(format_args!("{text}"));
}

/// Says on stderr what the user should know although the command goes on.
pub fn warn(text: &str) {
    say(format_args!("warning: {text}"));
}

fn say(text: std::fmt::Arguments<'_>) {
    // If stderr is gone there is nobody left to tell.
    for line in text.to_string().lines() {
        let _ = writeln!(io::stderr(), "maptrail: {}", escaped(line));
    }
}
