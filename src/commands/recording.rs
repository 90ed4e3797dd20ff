//! What `record` and `attach` share: where the log goes, and what is done when it is written.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::ValueEnum;
use maptrail_recorder::{Error, Recording, create};
use maptrail_replay::symbols::{Places, name_jit_code, name_log};
use maptrail_replay::views::text::{count, seconds};
use maptrail_tracelog::types::{ModuleId, Nanos};

use crate::commands::leaks;
use crate::fail::FailArgs;
use crate::output;

/// Where the log goes.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// Where the log goes; `-` is stdout, and writes no names of functions [default: maptrail-DATE-TIME-PID.maptrail]
    #[arg(short, long, value_name = "LOG")]
    output: Option<PathBuf>,

    /// Overwrite LOG if it exists
    #[arg(long)]
    force: bool,
}

/// What is done with the log once it is written.
#[derive(Debug, clap::Args)]
pub struct AfterArgs {
    /// Whether to write the names of functions into the log
    #[arg(long, value_name = "WHICH", default_value = "auto")]
    symbols: SymbolsArg,

    #[command(flatten)]
    fail: FailArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SymbolsArg {
    /// Look names up afterwards, so that the log is readable anywhere
    Auto,
    /// Leave it to whoever reads the log, who needs the same files
    None,
}

/// What `-o -` means.
const STDOUT: &str = "-";

/// The place of a log that is to be written.
pub struct Place {
    /// `None` for stdout.
    path: Option<PathBuf>,
    force: bool,
}

impl OutputArgs {
    /// The place that was named, or a new one.
    pub fn place(self) -> Place {
        let path = match self.output {
            Some(path) if path.as_os_str() == STDOUT => None,
            Some(path) => Some(path),
            None => {
                let now = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S");
                let pid = std::process::id();
                Some(PathBuf::from(format!("maptrail-{now}-{pid}.maptrail")))
            }
        };
        Place {
            path,
            force: self.force,
        }
    }
}

impl Place {
    /// Whether the log goes to stdout.
    pub fn is_stdout(&self) -> bool {
        self.path.is_none()
    }

    /// Opens the place and has `make` record into it. Leaves no file if nothing was recorded.
    ///
    /// # Errors
    /// Those of opening it, and those of `make`.
    pub fn fill<T>(&self, make: impl FnOnce(File) -> Result<T, Error>) -> anyhow::Result<T> {
        let (log, fresh) = match &self.path {
            Some(path) => create(path, self.force).map(|(log, fresh)| (log, Some(fresh)))?,
            None => (stdout_file()?, None),
        };
        let made = make(log).inspect_err(|error| {
            if let Some(fresh) = fresh {
                fresh.remove_unused(error);
            }
        });
        Ok(made?)
    }
}

fn stdout_file() -> anyhow::Result<File> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    Ok(File::from(
        stdout.context("cannot write the log to stdout")?,
    ))
}

impl AfterArgs {
    /// Makes sure that the checks that were asked for can be made on a log at `place`.
    ///
    /// # Errors
    /// If it cannot be read back.
    pub fn can_follow(&self, place: &Place) -> anyhow::Result<()> {
        if place.is_stdout() && self.fail.any() {
            bail!("--fail-on and --fail-over read the log, which `-o -` sends away: name a file");
        }
        Ok(())
    }

    /// Names the functions in the log, says what was recorded and what the log lacks, and makes the
    /// checks that were asked for; the exit code if one of them failed.
    ///
    /// # Errors
    /// If a check could not be made.
    pub fn conclude(
        &self,
        place: &Place,
        recording: &Recording,
    ) -> anyhow::Result<Option<ExitCode>> {
        let Some(path) = &place.path else {
            return Ok(None);
        };
        if recording.interrupted {
            output::warn(
                "the log is still being written, and not waited for: names of functions are looked up \
                 when it is read",
            );
            if self.fail.any() {
                bail!("the log was not checked for leaks");
            }
            return Ok(None);
        }
        warn_of_losses(recording);
        // The names of what was not recorded are missed by nobody, and where the log did not fit they
        // do not.
        let names = !recorded_nothing(recording) && output_failure(recording).is_none();
        if self.symbols == SymbolsArg::Auto && names {
            write_names(path, recording);
        }
        tell_result(path, recording);
        if !self.fail.any() {
            return Ok(None);
        }
        if output_failure(recording).is_some() && recorded_nothing(recording) {
            bail!("the log could not be checked for leaks: nothing was recorded");
        }
        leaks::check_recorded(path, &self.fail).context("the log could not be checked for leaks")
    }
}

/// Why the log could not be written to its end.
pub fn output_failure(recording: &Recording) -> Option<&str> {
    recording.report.as_ref()?.output_failure.as_deref()
}

/// Adds names to the log, from the very files that ran, and from what just-in-time compilers wrote.
fn write_names(path: &Path, recording: &Recording) {
    let opened = |id: ModuleId| {
        let (_, file) = recording.modules.iter().find(|(module, _)| *module == id)?;
        Some(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())))
    };
    let maps = recording.perf_maps.iter();
    let maps = maps.map(|map| (map.space, (&map.file).take(map.length)));
    let named = name_log(path, &Places::Machine, opened).and_then(|_| name_jit_code(path, maps));
    if let Err(error) = named {
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
pub fn warn_of_losses(recording: &Recording) {
    if let Some(failure) = output_failure(recording) {
        output::warn(&format!(
            "the log ends early, it could not be written: {failure}"
        ));
    }
    let limit = (recording.report.as_ref()).and_then(|report| report.limit.as_ref());
    if let Some(limit) = limit {
        output::warn(&format!("the recording was ended early: {limit}"));
    }
    let lost = recording.report.as_ref().map_or(0, |report| report.lost);
    if lost > 0 {
        output::warn(&format!("{} events were lost", count(lost)));
    }
}

/// Says what was recorded, and what to do next.
fn tell_result(path: &Path, recording: &Recording) {
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
