//! Opens logs, and says in plain words what is wrong with one.

use std::fs::{File, FileType};
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use maptrail_replay::symbols::{Names, Places};
use maptrail_replay::views::text::{Screen, count, seconds, size};
use maptrail_replay::views::when::When;
use maptrail_tracelog::reader::{LogReader, OpenError};
use maptrail_tracelog::types::Nanos;

use crate::output;

/// A log that is being read.
pub type Log = LogReader<BufReader<File>>;

/// Which log a command reads.
#[derive(Clone, Debug, clap::Args)]
pub struct LogArg {
    /// The log, as `maptrail record -o LOG` wrote it
    #[arg(value_name = "LOG")]
    log: PathBuf,
}

/// Whether a command prints for programs.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct JsonArg {
    /// Print JSON (its fields are described in the README)
    #[arg(long)]
    pub json: bool,
}

/// How much of a stack a command prints for people.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DepthArg {
    /// Show so many frames of a stack, innermost first; 0 for all
    #[arg(long, value_name = "N", default_value_t = Screen::DEPTH)]
    depth: usize,
}

impl DepthArg {
    /// The screen with as much of each stack as was asked for.
    #[must_use]
    pub fn on(self, screen: Screen) -> Screen {
        let depth = match self.depth {
            0 => usize::MAX,
            depth => depth,
        };
        Screen { depth, ..screen }
    }
}

/// Where names of functions are looked up that the log does not have.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct NamesArg {
    /// Look names up in the files below DIR, which stands for the recorded machine's root, and nowhere else
    #[arg(long, value_name = "DIR")]
    symfs: Option<PathBuf>,
}

impl NamesArg {
    /// Where the recorded machine's files are.
    ///
    /// # Errors
    /// If what was named is no folder.
    pub fn places(&self) -> anyhow::Result<Places> {
        let Some(dir) = &self.symfs else {
            return Ok(Places::Machine);
        };
        Places::below(dir).with_context(|| {
            format!(
                "cannot read {}: --symfs takes the folder that holds the recorded machine's files",
                dir.display()
            )
        })
    }

    /// The names in a log, and what it lacks from files.
    ///
    /// # Errors
    /// Those of reading the log, and of [`NamesArg::places`].
    pub fn names(&self, log: &mut Log) -> anyhow::Result<Names> {
        let names = log.names().context("cannot read the log")?;
        Ok(Names::with_files(names, self.places()?))
    }
}

impl LogArg {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.log
    }

    /// Opens the log. A cut log is no error: a warning says what is gone.
    ///
    /// # Errors
    /// If there is no such file, or it is no log.
    pub fn open(&self) -> anyhow::Result<Log> {
        open(&self.log)
    }
}

/// Opens the log at `path`; see [`LogArg::open`].
///
/// # Errors
/// If there is no such file, or it is no log.
pub fn open(path: &Path) -> anyhow::Result<Log> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let kind = file.metadata().map(|meta| meta.file_type());
    if kind.as_ref().is_ok_and(FileType::is_dir) {
        bail!("{name} is a directory: name a log inside of it");
    }
    if kind.is_ok_and(|kind| !kind.is_file()) {
        bail!(
            "{name} is no regular file, and a log is read forwards and backwards: save it to one"
        );
    }
    let log = LogReader::open(BufReader::with_capacity(1 << 16, file)).map_err(|error| {
        let remedy = match &error {
            OpenError::Empty => {
                "nothing was recorded into it, or its recorder was killed before its first write"
            }
            OpenError::NotALog => "name the file that `maptrail record -o FILE` wrote",
            OpenError::HeaderDamaged => "nothing in it can be read",
            OpenError::NewerVersion { .. } | OpenError::Io(_) => "",
        };
        match remedy {
            "" => anyhow::anyhow!("{name}: {error}"),
            remedy => anyhow::anyhow!("{name}: {error}: {remedy}"),
        }
    })?;
    warn_if_cut(&log);
    Ok(log)
}

/// The time in the log that a person means.
///
/// # Errors
/// If the log does not cover it.
pub fn moment(log: &Log, when: When) -> anyhow::Result<Nanos> {
    let (_, last) = log.span().unwrap_or_default();
    Ok(when.resolve(log.header().wall_start_ns, last)?)
}

fn warn_if_cut<R: Read + Seek>(log: &LogReader<R>) {
    let health = log.health();
    if health.has_end {
        if health.cut_bytes > 0 {
            output::warn(
                "this log is cut after its last event: all calls are here, names of functions may be \
                 missing",
            );
        }
        return;
    }
    let (_, last) = log.span().unwrap_or_default();
    let cut = match health.cut_bytes {
        0 => String::new(),
        bytes => format!(" (and {} that were not fully written)", size(bytes)),
    };
    output::warn(&format!(
        "this log has no end: its recorder was killed, could not write any more, or is still at work. \
         Everything up to {} is here, what came after is lost{cut}",
        seconds(last)
    ));
}

/// Says that calls are missing which the recorder made out but could not write.
pub fn warn_if_lost(events: u64) {
    if events > 0 {
        output::warn(&format!(
            "{} events were lost while this log was written, so sizes may be wrong: `maptrail info` says \
             more",
            count(events)
        ));
    }
}

/// Says what was found damaged or not understood while the log was read. To be called at the end.
pub fn warn_if_damaged<R: Read + Seek>(log: &LogReader<R>) {
    let health = log.health();
    if health.damaged_blocks > 0 || health.skipped_bytes > 0 {
        output::warn(&format!(
            "the log is damaged: {} of its blocks and {} between them could not be read. Calls are \
             missing, so sizes may be wrong",
            count(health.damaged_blocks),
            size(health.skipped_bytes)
        ));
    }
    let unknown = health.unknown_blocks
        + health.unknown_records
        + health.unknown_events
        + health.unknown_names;
    if unknown > 0 {
        output::warn(&format!(
            "a newer maptrail wrote this log: {} of its entries are of kinds that this one does not \
             know, and were left out",
            count(unknown)
        ));
    }
}
