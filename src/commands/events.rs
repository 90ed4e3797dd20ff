//! `maptrail events`: the calls, in the order in which they took effect.

use std::process::ExitCode;

use clap::ValueEnum;
use maptrail_replay::replay::replay;
use maptrail_replay::views::events::{Events, Format};

use crate::log::{self, LogArg};
use crate::output::Output;

/// Print every recorded call, as strace does or as JSON lines
///
/// In effect order: a release at the moment it was entered, an acquisition at the moment it came
/// back. Tools that read strace's output read this.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  maptrail events run.maptrail | grep munmap
  maptrail events run.maptrail --format json | jq 'select(.errno)'")]
pub struct Args {
    #[command(flatten)]
    log: LogArg,

    /// How to print a call
    #[arg(long, value_name = "FORMAT", default_value = "strace")]
    format: FormatArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// As `strace -f -o FILE` prints it
    Strace,
    /// One JSON object a line
    Json,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If the log cannot be read or the output not written.
    pub fn run(&self, output: &mut Output) -> anyhow::Result<ExitCode> {
        let mut log = self.log.open()?;
        let format = match self.format {
            FormatArg::Strace => Format::Strace,
            FormatArg::Json => Format::Json,
        };
        let mut replayed = Ok(());
        output.write(|out, _| {
            let mut events = Events::new(out, format);
            replayed = replay(&mut log, &mut events).map(|_| ());
            events.finish()
        })?;
        replayed?;
        log::warn_if_damaged(&log);
        Ok(ExitCode::SUCCESS)
    }
}
