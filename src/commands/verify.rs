//! `maptrail verify`: is the replay true?

use std::process::ExitCode;

use maptrail_replay::check::verify;
use maptrail_replay::views::{verify as view, write_json};

use crate::fail;
use crate::log::{self, JsonArg, LogArg};
use crate::output::Output;

/// Compare the replayed address spaces with the kernel's own list, at every checkpoint
///
/// Exits with 0 if not a byte differs, and with 1 if there is drift.
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
        let (result, _) = verify(&mut log)?;
        output.write(|out, screen| match self.json.json {
            true => write_json(out, &result),
            false => view::write_text(out, &result, screen),
        })?;
        log::warn_if_damaged(&log);
        Ok(match result.drift_bytes {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::from(fail::CHECK),
        })
    }
}
