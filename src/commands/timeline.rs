//! `maptrail timeline`: sizes over time.

use std::process::ExitCode;

use maptrail_replay::usage::usage;
use maptrail_replay::views::timeline::{Timeline, points};
use maptrail_replay::views::write_json;

use crate::log::{self, JsonArg, LogArg, NamesArg};
use crate::output::Output;

/// Draw reserved, committed and resident memory over time, and what the greatest stacks held
///
/// Reserved is all that is mapped; committed is what of it the program may touch; resident is what is
/// in RAM. On a terminal a plot, elsewhere numbers.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    log: LogArg,

    #[command(flatten)]
    names: NamesArg,

    /// How many stacks to show
    #[arg(long, value_name = "N", default_value_t = 8)]
    top: usize,

    #[command(flatten)]
    json: JsonArg,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If the log cannot be read or the output not written.
    pub fn run(&self, output: &mut Output) -> anyhow::Result<ExitCode> {
        let mut log = self.log.open()?;
        let points = points(output.screen(), self.json.json);
        let (usage, world) = usage(&mut log, points, self.top)?;
        let timeline = Timeline::new(&usage, &world, &mut self.names.names(&mut log)?);
        output.write(|out, screen| match self.json.json {
            true => write_json(out, &timeline),
            false => timeline.write_text(out, screen),
        })?;
        log::warn_if_lost(world.lost);
        log::warn_if_damaged(&log);
        Ok(ExitCode::SUCCESS)
    }
}
