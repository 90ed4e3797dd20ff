//! `maptrail symbolize`: names of functions for a log that has none.

use std::process::ExitCode;

use anyhow::{Context, bail};
use maptrail_replay::symbols::name_log;
use maptrail_replay::views::text::count;

use crate::log::{LogArg, NamesArg};
use crate::output::Output;

/// Write the names of functions into a log, so that it can be read without the recorded machine's files
///
/// For a log that was recorded with `--symbols none`, or where the debug information was not at hand.
/// Names that it has already stay, unless there are better ones now. The other commands look up by
/// themselves what a log lacks, each time; this does it once and for all.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  maptrail symbolize run.maptrail                         with the files of this machine
  maptrail symbolize run.maptrail --symfs rootfs          with those of an unpacked image or package
  maptrail symbolize run.maptrail --symfs debug-files     or a folder with .build-id in it")]
pub struct Args {
    #[command(flatten)]
    log: LogArg,

    #[command(flatten)]
    names: NamesArg,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If the log cannot be read or written, or is not finished.
    pub fn run(&self, output: &mut Output) -> anyhow::Result<ExitCode> {
        let name = self.log.path().display();
        if !self.log.open()?.health().has_end {
            bail!(
                "{name} is not finished, and what is added now would hide that: look at it with `maptrail \
                 leaks {name} --symfs DIR`"
            );
        }
        let named = name_log(self.log.path(), &self.names.places()?, |_| None)
            .with_context(|| format!("{name} got no names"))?;
        output.write(|out, _| {
            writeln!(
                out,
                "{} of {} places in code had a name; {} have got one now, or a better one.",
                count(named.before),
                count(named.places),
                count(named.added)
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
