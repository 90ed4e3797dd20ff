//! `maptrail leaks`: who holds the memory.

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use maptrail_replay::leaks::{By, Leaks, Options, leaks};
use maptrail_replay::views::leaks::{Detail, Report};
use maptrail_replay::views::write_json;
use maptrail_tracelog::types::Nanos;

use crate::arguments::parse_duration;
use crate::fail::FailArgs;
use crate::log::{self, DepthArg, JsonArg, Log, LogArg, NamesArg};
use crate::output::{self, Output};

/// Name the call stacks whose mappings are never released
///
/// For each stack: what it holds, in how many mappings, how fast that grows, how much of it is in RAM,
/// how much it gives back, and what that makes it: a leak, a plateau, churn, a one-off, a reservation,
/// or undecided with what would decide it. The worst comes first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  maptrail leaks run.maptrail
  maptrail leaks run.maptrail --top 3                    three stacks, whatever their verdict
  maptrail leaks run.maptrail --by module                which library
  maptrail leaks run.maptrail --fail-over 64MiB          exit with 86 if leaks hold more")]
pub struct Args {
    #[command(flatten)]
    log: LogArg,

    #[command(flatten)]
    names: NamesArg,

    /// What to add up by
    #[arg(long, value_name = "WHAT", default_value = "stack")]
    by: ByArg,

    /// Leave out mappings younger than this at the end, such as 5s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    min_age: Option<Duration>,

    /// Show the worst N in full
    #[arg(long, value_name = "N")]
    top: Option<NonZeroUsize>,

    /// Show all in full, whatever their verdict
    #[arg(long, conflicts_with = "top")]
    all: bool,

    #[command(flatten)]
    depth: DepthArg,

    #[command(flatten)]
    json: JsonArg,

    #[command(flatten)]
    fail: FailArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ByArg {
    /// The call stack
    Stack,
    /// The innermost module that is not libc
    Module,
    /// The thread that made the call
    Thread,
    /// The call and the sort of memory
    Kind,
}

impl From<ByArg> for By {
    fn from(by: ByArg) -> By {
        match by {
            ByArg::Stack => By::Stack,
            ByArg::Module => By::Module,
            ByArg::Thread => By::Thread,
            ByArg::Kind => By::Kind,
        }
    }
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If the log cannot be read or the output not written.
    pub fn run(&self, output: &mut Output) -> anyhow::Result<ExitCode> {
        let mut log = self.log.open()?;
        let options = Options {
            by: self.by.into(),
            min_age: Nanos(self.min_age.map_or(0, |d| d.as_nanos() as u64)),
            top: self.top.map(NonZeroUsize::get),
        };
        let (leaks, report) = judge(&mut log, options, &self.names)?;
        let detail = match self.all || self.top.is_some() {
            true => Detail::All,
            false => Detail::Leaks,
        };
        output.write(|out, screen| match self.json.json {
            true => write_json(out, &report),
            false => report.write_text(out, self.depth.on(screen), detail),
        })?;
        log::warn_if_damaged(&log);
        Ok(self.fail.check(&leaks).unwrap_or(ExitCode::SUCCESS))
    }
}

fn judge(log: &mut Log, options: Options, names: &NamesArg) -> anyhow::Result<(Leaks, Report)> {
    let (leaks, world) = leaks(log, options)?;
    let report = Report::new(&leaks, options.by, &world, &mut names.names(log)?);
    log::warn_if_lost(world.lost);
    Ok((leaks, report))
}

/// Makes the checks that `record` was asked for. If one fails, tells the leaks on stderr, since stdout
/// was the program's, and gives the exit code.
///
/// # Errors
/// If the log cannot be read.
pub fn check_recorded(path: &Path, fail: &FailArgs) -> anyhow::Result<Option<ExitCode>> {
    let mut log = log::open(path)?;
    let (leaks, report) = judge(&mut log, Options::default(), &NamesArg::default())?;
    let failed = fail.check(&leaks);
    if failed.is_some() {
        output::report(|out, screen| report.write_text(out, screen, Detail::Leaks));
    }
    Ok(failed)
}
