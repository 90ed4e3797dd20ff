//! `maptrail who`: the life of an address.

use std::process::ExitCode;

use anyhow::bail;
use maptrail_replay::maps_at::maps_at;
use maptrail_replay::views::when::When;
use maptrail_replay::views::who::{Life, nearest};
use maptrail_replay::views::write_json;
use maptrail_replay::who::{Question, who};
use maptrail_tracelog::types::Addr;

use crate::arguments::parse_address;
use crate::log::{self, DepthArg, JsonArg, LogArg, NamesArg};
use crate::output::Output;

/// Show every call that touched an address, from the birth of what is mapped there, through moves
///
/// A log has an address space for each process (and for each program that it runs by exec): all in
/// which the address was mapped are shown, one after the other. Exits with 2 if the address was never mapped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  maptrail who run.maptrail 0x7f2a10000000
  maptrail who run.maptrail 7f2a10000000 --at 12.5s      what was there 12.5 s into the recording")]
pub struct Args {
    #[command(flatten)]
    log: LogArg,

    #[command(flatten)]
    names: NamesArg,

    /// The address, in hexadecimal
    #[arg(value_name = "ADDR", value_parser = parse_address)]
    address: Addr,

    /// Show all calls, however many; otherwise of more than 200 the first and the last
    #[arg(long)]
    all: bool,

    /// As things stood then: 12.5s from the start, -5s from the end, or an RFC 3339 instant
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<When>,

    #[command(flatten)]
    depth: DepthArg,

    #[command(flatten)]
    json: JsonArg,
}

/// How many calls are shown without `--all`.
const MOST: usize = 200;

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If the address was never mapped, the log cannot be read, does not cover the time, or the output
    /// cannot be written.
    pub fn run(&self, output: &mut Output) -> anyhow::Result<ExitCode> {
        let mut log = self.log.open()?;
        let at = self.at.map(|when| log::moment(&log, when)).transpose()?;
        let most = if self.all { usize::MAX } else { MOST };
        let question = Question {
            at,
            most,
            ..Question::about(self.address)
        };
        let (found, world) = who(&mut log, question)?;
        if found.is_empty() {
            let (spaces, world) = maps_at(&mut log, at, None)?;
            let near = nearest(self.address, &spaces, &world);
            let near = near.map_or(String::new(), |near| format!("; {near}"));
            bail!(
                "{} was never mapped while the log was recorded{near}",
                self.address
            );
        }
        let life = Life::new(
            self.address,
            &found,
            &world,
            &mut self.names.names(&mut log)?,
        );
        output.write(|out, screen| match self.json.json {
            true => write_json(out, &life),
            false => life.write_text(out, self.depth.on(screen)),
        })?;
        log::warn_if_lost(world.lost);
        log::warn_if_damaged(&log);
        Ok(ExitCode::SUCCESS)
    }
}
