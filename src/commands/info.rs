//! `maptrail info`: what a log is about.

use std::process::ExitCode;

use anyhow::Context;
use maptrail_replay::views::{info, write_json};

use crate::log::{self, JsonArg, LogArg};
use crate::output::Output;

/// Say what a log is about, whether it is complete, and what the recording cost
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    log: LogArg,

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
        let info = info::gather(&mut log).context("cannot read the log")?;
        output.write(|out, screen| match self.json.json {
            true => write_json(out, &info),
            false => info::write_text(out, &info, screen),
        })?;
        log::warn_if_damaged(&log);
        Ok(ExitCode::SUCCESS)
    }
}
