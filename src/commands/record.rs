//! `maptrail record`: runs a program and records its memory calls.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use maptrail_recorder::{Ended, Error, Options, find_program};
use maptrail_tracelog::record::Mechanism;

use crate::arguments::parse_duration;
use crate::commands::recording::{AfterArgs, OutputArgs};
use crate::output;

/// Run a program and record every memory system call that it and its children make
///
/// The program runs as it would by itself: same terminal, same signals, same exit code. What maptrail
/// has to say goes to stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  maptrail record -- ./server --port 80
  maptrail record -o run.maptrail --for 60s -- python3 train.py
  maptrail record --fail-on leak -- ./tests           in a CI job: 86 if anything leaks")]
pub struct Args {
    #[command(flatten)]
    output: OutputArgs,

    /// Stop recording after this long, such as 60s or 5m; the program runs on
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    window: Option<Duration>,

    /// How the program is stopped at its memory calls
    #[arg(long, value_name = "HOW", default_value = "auto")]
    mechanism: MechanismArg,

    /// Record the program alone, not the processes that it starts
    #[arg(long)]
    no_follow_forks: bool,

    #[command(flatten)]
    after: AfterArgs,

    /// The program and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MechanismArg {
    /// The best that the kernel offers
    Auto,
    /// A filter that stops at memory calls only; it ends with the program
    Seccomp,
    /// Stops at every system call: slower, leaves nothing behind
    Syscall,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// If nothing could be recorded, or the checks that were asked for could not be made.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.record() {
            Err(error) => match error.downcast_ref::<Error>() {
                // A shell's codes for a program that cannot be run.
                Some(cause) => {
                    output::complain(&error);
                    Ok(ExitCode::from(cause.exit_code()))
                }
                None => Err(error),
            },
            done => done,
        }
    }

    fn record(self) -> anyhow::Result<ExitCode> {
        let place = self.output.place();
        self.after.can_follow(&place)?;
        if let Some(program) = self.command.first() {
            find_program(program)?;
        }
        let (ended, recording) = place.fill(|log| {
            let options = Options {
                command: self.command,
                log,
                mechanism: match self.mechanism {
                    MechanismArg::Auto => None,
                    MechanismArg::Seccomp => Some(Mechanism::Seccomp),
                    MechanismArg::Syscall => Some(Mechanism::Syscall),
                },
                follow_forks: !self.no_follow_forks,
                window: self.window,
                log_is_stdout: place.is_stdout(),
            };
            maptrail_recorder::record(options, &mut output::warn)
        })?;
        let failed = self.after.conclude(&place, &recording)?;
        Ok(failed.unwrap_or_else(|| exit_code(ended)))
    }
}

/// As a shell tells it: the exit code, or 128 and the number of the signal.
fn exit_code(ended: Ended) -> ExitCode {
    let code = match ended {
        Ended::Exited(code) => code,
        Ended::Killed(signal) => 128 + signal,
    };
    ExitCode::from((code & 0xff) as u8)
}
