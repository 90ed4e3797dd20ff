//! `maptrail attach`: records a running process for a while.

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use maptrail_recorder::{AttachOptions, Choice, Pattern, Target};
use maptrail_replay::views::text::parse_size;
use maptrail_tracelog::record::Mechanism;
use maptrail_tracelog::types::{Pid, Tid};

use crate::arguments::{parse_id, parse_some_duration};
use crate::commands::recording::{AfterArgs, OutputArgs, output_failure, warn_of_losses};
use crate::fail;
use crate::output;

/// Record a running process for a while, and leave it as it was
///
/// The process runs on meanwhile: its threads stop for some microseconds at each system call. The
/// recording ends after --for TIME, by Ctrl-C, SIGTERM or SIGHUP, at one of the limits below, or when the
/// process ends.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  maptrail attach 4711 --for 60s
  maptrail attach 4711 --for 60s -o worker.maptrail --thread-name 'decode-*'
  maptrail attach -p 4711 --max-slowdown 5 --max-log 1GiB       until Ctrl-C, or a limit

Exit codes:
  0          the recording was made, however it was ended
  2          the process cannot be attached to, or the log not be written to its end
  86         a check of --fail-on or --fail-over failed")]
pub struct Args {
    #[command(flatten)]
    process: ProcessArg,

    #[command(flatten)]
    output: OutputArgs,

    /// Stop recording after this long, such as 60s or 5m
    #[arg(long = "for", value_name = "TIME", value_parser = parse_some_duration, allow_negative_numbers = true)]
    window: Option<Duration>,

    /// Record this thread, not all of them; may be given several times
    #[arg(long = "tid", value_name = "TID", value_parser = parse_id)]
    tids: Vec<u32>,

    /// Record the threads with such names, as in 'decode-*'; may be given several times
    #[arg(long = "thread-name", value_name = "GLOB")]
    thread_names: Vec<Pattern>,

    /// How the process is stopped at its memory calls
    #[arg(long, value_name = "HOW", default_value = "auto")]
    mechanism: MechanismArg,

    /// Record the processes that it starts, too
    #[arg(long)]
    follow_forks: bool,

    /// Stop recording when it costs the process more than this part of its time, in
    /// percent; 0 is no limit
    #[arg(long, value_name = "PCT", default_value_t = 20, value_parser = parse_percent, allow_negative_numbers = true)]
    max_slowdown: u32,

    /// Stop recording when the log has this size, such as 1GiB; the names of functions come on top
    #[arg(long, value_name = "SIZE", value_parser = parse_some_size)]
    max_log: Option<u64>,

    #[command(flatten)]
    after: AfterArgs,
}

/// Which process is meant: both forms say the same.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct ProcessArg {
    /// The process to record, by its pid
    #[arg(value_name = "PID", value_parser = parse_id, allow_negative_numbers = true)]
    process: Option<u32>,

    /// The same
    #[arg(short, long, value_name = "PID", value_parser = parse_id, allow_negative_numbers = true)]
    pid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MechanismArg {
    /// The best for this process
    Auto,
    /// Stops at every system call
    Syscall,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If nothing could be recorded, or the checks that were asked for could not be made.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let place = self.output.place();
        self.after.can_follow(&place)?;
        let pid = Pid(self
            .process
            .process
            .or(self.process.pid)
            .unwrap_or_default());
        let choice = Choice {
            tids: self.tids.into_iter().map(Tid).collect(),
            names: self.thread_names,
        };
        // Before the log is made: a process that is refused leaves none.
        let target = Target::look(pid)?;
        choice.check(&target)?;
        let recording = place.fill(|log| {
            let options = AttachOptions {
                target,
                log,
                log_is_stdout: place.is_stdout(),
                choice,
                follow_forks: self.follow_forks,
                mechanism: match self.mechanism {
                    MechanismArg::Auto => None,
                    MechanismArg::Syscall => Some(Mechanism::Syscall),
                },
                window: self.window,
                max_slowdown_percent: Some(self.max_slowdown).filter(|percent| *percent > 0),
                max_log_bytes: self.max_log,
            };
            maptrail_recorder::attach(options, &mut output::warn, &mut output::tell)
        })?;
        if place.is_stdout() {
            // There is no log here to conclude, and nobody else would say why the exit code is not 0.
            warn_of_losses(&recording);
        }
        if let Some(failed) = self.after.conclude(&place, &recording)? {
            return Ok(failed);
        }
        let in_order = recording.interrupted
            || (recording.report.is_some() && output_failure(&recording).is_none());
        Ok(match in_order {
            true => ExitCode::SUCCESS,
            false => ExitCode::from(fail::USAGE),
        })
    }
}

/// Less than that tells nothing of anybody, bytes.
const SMALLEST_LOG: u64 = 64 << 10;

/// Reads a size that something fits into.
fn parse_some_size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        ..SMALLEST_LOG => Err("a log needs 64KiB or more: write 100MiB or 1GiB".into()),
        size => Ok(size),
    }
}

fn parse_percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let wrong = |_| "write a whole number of percent, such as 20; 0 is no limit".to_owned();
    number.parse().map_err(wrong)
}
