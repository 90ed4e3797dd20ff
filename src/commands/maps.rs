//! `maptrail maps`: the address space at a moment.

use std::process::ExitCode;

use maptrail_replay::maps_at::maps_at;
use maptrail_replay::views::maps::Maps;
use maptrail_replay::views::when::When;
use maptrail_replay::views::write_json;

use crate::log::{self, JsonArg, LogArg, NamesArg};
use crate::output::Output;

/// Show the address space at a moment, with the call that made each range
///
/// As /proc/PID/maps, with the size of each range and its birth: when, by which call of which thread,
/// and from which function. A log has an address space for each process (and for each program that it
/// runs by exec): all are shown, one after the other.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  maptrail maps run.maptrail                              each address space at its end
  maptrail maps run.maptrail --at 12.5s                   12.5 s after the recording began
  maptrail maps run.maptrail --at -5s                     5 s before it ended
  maptrail maps run.maptrail --at 2026-01-31T03:00:00Z    at an instant")]
pub struct Args {
    #[command(flatten)]
    log: LogArg,

    #[command(flatten)]
    names: NamesArg,

    /// When: 12.5s from the start, -5s from the end, or an RFC 3339 instant [default: each address
    /// space at its own end]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<When>,

    #[command(flatten)]
    json: JsonArg,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If the log cannot be read, does not cover the time, or the output cannot be written.
    pub fn run(&self, output: &mut Output) -> anyhow::Result<ExitCode> {
        let mut log = self.log.open()?;
        let at = self.at.map(|when| log::moment(&log, when)).transpose()?;
        let (spaces, world) = maps_at(&mut log, at, None)?;
        let maps = Maps::new(&spaces, &world, &mut self.names.names(&mut log)?);
        output.write(|out, screen| match self.json.json {
            true => write_json(out, &maps),
            false => maps.write_text(out, screen),
        })?;
        log::warn_if_lost(world.lost);
        log::warn_if_damaged(&log);
        Ok(ExitCode::SUCCESS)
    }
}
