//! `maptrail record`: runs a program and records its memory calls.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use maptrail_recorder::{Ended, Error, Options, Recording, create, find_program};
use maptrail_replay::symbols::name_log;
use maptrail_replay::views::text::{count, seconds};
use maptrail_tracelog::record::Mechanism;
use maptrail_tracelog::types::{ModuleId, Nanos};

use crate::arguments::parse_duration;
use crate::commands::leaks;
use crate::fail::FailArgs;
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
    /// Where the log goes; `-` is stdout, and writes no names of functions [default: maptrail-DATE-TIME-PID.maptrail]
    #[arg(short, long, value_name = "LOG")]
    output: Option<PathBuf>,

    /// Overwrite LOG if it exists
    #[arg(long)]
    force: bool,

    /// Stop recording after this long, such as 60s or 5m; the program runs on
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    window: Option<Duration>,

    /// How the program is stopped at its memory calls
    #[arg(long, value_name = "HOW", default_value = "auto")]
    mechanism: MechanismArg,

    /// Record the program alone, not the processes that it starts
    #[arg(long)]
    no_follow_forks: bool,

    /// Whether to write the names of functions into the log
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    symbols: SymbolsArg,

    #[command(flatten)]
    fail: FailArgs,

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SymbolsArg {
    /// Look names up when the program has ended, so that the log is readable anywhere
    Auto,
    /// Leave it to whoever reads the log, who needs the same files
    None,
}

/// What `-o -` means.
const STDOUT: &str = "-";

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
        let path = self.path();
        if path.is_none() && self.fail.any() {
            bail!("--fail-on and --fail-over read the log, which `-o -` sends away: name a file");
        }
        if let Some(program) = self.command.first() {
            find_program(program)?;
        }
        let (log, fresh) = match &path {
            Some(path) => create(path, self.force).map(|(log, fresh)| (log, Some(fresh)))?,
            None => (stdout_file()?, None),
        };
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
            log_is_stdout: path.is_none(),
        };
        let recorded = maptrail_recorder::record(options, &mut output::warn);
        let (ended, recording) = recorded.inspect_err(|error| {
            if let Some(fresh) = fresh {
                fresh.remove_unused(error);
            }
        })?;
        let code = exit_code(ended);
        let Some(path) = path else {
            return Ok(code);
        };
        if recording.interrupted {
            output::warn(
                "the log is still being written, and not waited for: names of functions are looked up \
                 when it is read",
            );
            if self.fail.any() {
                bail!("the log was not checked for leaks");
            }
            return Ok(code);
        }
        warn_of_losses(&recording);
        // The names of what was not recorded are missed by nobody.
        if self.symbols == SymbolsArg::Auto && !recorded_nothing(&recording) {
            write_names(&path, &recording);
        }
        conclude(&path, &recording);
        if self.fail.any() {
            let cut = recording
                .report
                .as_ref()
                .is_some_and(|r| r.output_failure.is_some());
            if cut && recorded_nothing(&recording) {
                bail!("the log could not be checked for leaks: nothing was recorded");
            }
            let failed = leaks::check_recorded(&path, &self.fail);
            if let Some(failed) = failed.context("the log could not be checked for leaks")? {
                return Ok(failed);
            }
        }
        Ok(code)
    }

    /// Where the log goes; `None` for stdout.
    fn path(&self) -> Option<PathBuf> {
        match &self.output {
            Some(path) if path.as_os_str() == STDOUT => None,
            Some(path) => Some(path.clone()),
            None => {
                let now = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S");
                let pid = std::process::id();
                Some(PathBuf::from(format!("maptrail-{now}-{pid}.maptrail")))
            }
        }
    }
}

fn stdout_file() -> anyhow::Result<File> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    Ok(File::from(
        stdout.context("cannot write the log to stdout")?,
    ))
}

/// As a shell tells it: the exit code, or 128 and the number of the signal.
fn exit_code(ended: Ended) -> ExitCode {
    let code = match ended {
        Ended::Exited(code) => code,
        Ended::Killed(signal) => 128 + signal,
    };
    ExitCode::from((code & 0xff) as u8)
}

/// Adds names to the log, from the very files that ran.
fn write_names(path: &Path, recording: &Recording) {
    let opened = |id: ModuleId| {
        let (_, file) = recording.modules.iter().find(|(module, _)| *module == id)?;
        Some(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
    };
    if let Err(error) = name_log(path, opened) {
        let error = anyhow::Error::new(error);
        output::warn(&format!(
            "the log has no names of functions, they are looked up when it is read: {error:#}"
        ));
    }
}

/// Whether the recording ended, and left no event.
fn recorded_nothing(recording: &Recording) -> bool {
    recording.report.as_ref().is_some_and(|r| r.events == 0)
}

/// Says what the log lacks, and why.
fn warn_of_losses(recording: &Recording) {
    let Some(report) = &recording.report else {
        return;
    };
    if let Some(failure) = &report.output_failure {
        output::warn(&format!(
            "the log ends early, it could not be written: {failure}"
        ));
    }
    if report.lost > 0 {
        output::warn(&format!("{} events were lost", count(report.lost)));
    }
}

/// Says what was recorded, and what to do next.
fn conclude(path: &Path, recording: &Recording) {
    let Some(report) = &recording.report else {
        return;
    };
    let next = match report.events {
        0 => String::new(),
        _ => format!(" Next: maptrail leaks {}", path.display()),
    };
    output::tell(&format!(
        "{} memory calls in {}.{next}",
        count(report.events),
        seconds(Nanos(report.window_ns)),
    ));
}
