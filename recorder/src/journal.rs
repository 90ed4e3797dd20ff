//! Collects what the tracer sees into chunks and has them written by a thread of their own, so that
//! compression and the disk are off the tracer's path.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use maptrail_tracelog::record::{Body, CallEvent, Header, Record};
use maptrail_tracelog::types::{Nanos, Stamp, Tid};
use maptrail_tracelog::writer::{Chunk, LogWriter};

use crate::error::Error;
use crate::proc;
use crate::sys::timer;
use crate::unwind::Interner;

/// A chunk is handed on at this many events, whatever its age.
const CHUNK_EVENTS: usize = 8192;
/// Or at this age. The promise is one second; the tick that looks at the age is coarser than this.
const CHUNK_AGE_NS: u64 = 400_000_000;
/// Chunks that may wait for the disk (about 1 MiB each) before the tracer waits as well.
const WAITING_CHUNKS: usize = 32;
/// What was waited comes back at one part in so many of the time that passes: nor is it held again
/// and again by one that is too slow.
const REGAINED: u64 = 20;

/// Creates the file of a log: readable by its owner only, never through a symbolic link, and never
/// over an existing file unless `force`. What an existing file holds is still there.
///
/// # Errors
/// [`Error::Output`].
pub fn create(path: &Path, force: bool) -> Result<(File, Fresh), Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY);
    let opened = match options.clone().create_new(true).open(path) {
        Ok(file) => Fresh::new(path, &file).map(|fresh| (file, fresh)),
        Err(e) if force && e.kind() == io::ErrorKind::AlreadyExists => {
            let opened = options.create(true).open(path);
            opened.inspect(make_private).map(|file| (file, Fresh(None)))
        }
        Err(e) => Err(e),
    };
    let told = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists if path.is_dir() => io::ErrorKind::IsADirectory.into(),
        _ => error,
    };
    opened.map_err(|error| Error::Output {
        path: path.to_owned(),
        source: told(error),
    })
}

/// Empties a file; a device or a pipe holds nothing.
pub fn empty(file: &File) -> io::Result<()> {
    match file.metadata()?.is_file() {
        true => file.set_len(0),
        false => Ok(()),
    }
}

/// Gives an existing file the mode that a new log has. A device or a pipe is shared on purpose, and
/// another user's file is that user's to protect.
fn make_private(file: &File) {
    let Ok(meta) = file.metadata() else { return };
    if meta.is_file() && proc::effective_uid(Tid(std::process::id())) == Some(meta.uid()) {
        // Where a file system has no modes, a new log would be no more private.
        let _ = file.set_permissions(PermissionsExt::from_mode(0o600));
    }
}

/// A log's file that was not there before this run: its place, device and inode. Empty for one that
/// was.
#[derive(Debug)]
pub struct Fresh(Option<(PathBuf, u64, u64)>);

impl Fresh {
    fn new(path: &Path, file: &File) -> io::Result<Fresh> {
        let meta = file.metadata()?;
        Ok(Fresh(Some((path.to_owned(), meta.dev(), meta.ino()))))
    }

    /// Takes the file away again after a recording that failed with `error`, if the program has not
    /// run. What was there before stays, and so does what somebody else put there meanwhile.
    pub fn remove_unused(self, error: &Error) {
        let Some((path, dev, inode)) = self.0 else {
            return;
        };
        let Ok(meta) = path.symlink_metadata() else {
            return;
        };
        let not_run = matches!(
            error,
            Error::NotFound(_)
                | Error::NoInterpreter(_)
                | Error::NotExecutable { .. }
                | Error::Refused { .. }
                | Error::Target { .. }
        );
        // The header is written before the program starts, so an empty log says the same.
        if (not_run || meta.len() == 0) && (meta.dev(), meta.ino()) == (dev, inode) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The way from the tracer to the log.
pub struct Journal {
    chunk: Chunk,
    start_ns: u64,
    to_writer: Option<SyncSender<Chunk>>,
    empty: Receiver<Chunk>,
    failure: Arc<OnceLock<String>>,
    writer: JoinHandle<()>,
    events: u64,
    lost: Arc<AtomicU64>,
    /// Bytes of the log so far.
    written: Arc<AtomicU64>,
    /// How long the tracer may wait for the output at most, nanoseconds ...
    most_patience: u64,
    /// ... and how long still, as of `since`.
    patience: u64,
    since: Nanos,
}

/// A log whose last chunk is on its way to the output.
pub struct Closing {
    failure: Arc<OnceLock<String>>,
    /// `None` if the output hangs, and cannot be waited for.
    writer: Option<JoinHandle<()>>,
    events: u64,
    lost: Arc<AtomicU64>,
}

impl Journal {
    /// Writes the header and starts the writing thread. `start_ns` is the CLOCK_MONOTONIC instant
    /// that the log's times count from; `patience` how long the target may wait for the output in sum.
    pub fn open(
        file: File,
        header: &Header,
        start_ns: u64,
        patience: Duration,
    ) -> io::Result<Journal> {
        let mut log = LogWriter::create(file, header)?;
        // A log on stdout may begin behind something else. A pipe has no position.
        let end = log.get_mut().stream_position().ok();
        let begin = end.and_then(|end| end.checked_sub(log.bytes_written()));
        let (to_writer, chunks) = sync_channel::<Chunk>(WAITING_CHUNKS);
        let (recycle, empty) = channel();
        let failure = Arc::new(OnceLock::new());
        let failed = Arc::clone(&failure);
        let lost = Arc::new(AtomicU64::new(0));
        let dropped = Arc::clone(&lost);
        let written = Arc::new(AtomicU64::new(log.bytes_written()));
        let grown = Arc::clone(&written);
        let work = move || {
            timer::block_signals_in_this_thread();
            for mut chunk in &chunks {
                if let Err(error) = log.write_chunk(&chunk) {
                    let _ = failed.set(error.to_string());
                    cut_back(&mut log, begin);
                    // What can still be said is the closing summary, if it fits. The tracer has seen
                    // the failure and sends nothing else any more.
                    let mut closing = chunk;
                    loop {
                        dropped.fetch_add(closing.events.len() as u64, Ordering::Relaxed);
                        match chunks.recv() {
                            Ok(chunk) => closing = chunk,
                            Err(_) => break,
                        }
                    }
                    only_summary(&mut closing, dropped.load(Ordering::Relaxed));
                    if log.write_chunk(&closing).is_err() {
                        cut_back(&mut log, begin);
                    }
                    return;
                }
                grown.store(log.bytes_written(), Ordering::Relaxed);
                chunk.nodes.clear();
                chunk.records.clear();
                chunk.events.clear();
                let _ = recycle.send(chunk);
            }
            if let Err(error) = log.finish() {
                let _ = failed.set(error.to_string());
                cut_back(&mut log, begin);
            }
        };
        let writer = std::thread::Builder::new()
            .name("maptrail-log".into())
            .spawn(work)?;
        Ok(Journal {
            chunk: Chunk::default(),
            start_ns,
            to_writer: Some(to_writer),
            empty,
            failure,
            writer,
            events: 0,
            lost,
            written,
            most_patience: patience.as_nanos() as u64,
            patience: patience.as_nanos() as u64,
            since: Nanos(0),
        })
    }

    /// The log's time now.
    #[must_use]
    pub fn now(&self) -> Nanos {
        Nanos(timer::monotonic_ns().saturating_sub(self.start_ns))
    }

    /// Notes an event. True when the chunk is full and should be handed on.
    pub fn event(&mut self, event: CallEvent) -> bool {
        if self.chunk.events.is_empty() && self.chunk.records.is_empty() {
            self.chunk.first_ns = event.entry_ns;
        }
        self.events += 1;
        self.chunk.events.push(event);
        self.chunk.events.len() >= CHUNK_EVENTS
    }

    /// Notes a record.
    pub fn record(&mut self, stamp: Stamp, ns: Nanos, body: Body) {
        if self.chunk.events.is_empty() && self.chunk.records.is_empty() {
            self.chunk.first_ns = ns;
        }
        self.chunk.records.push(Record { stamp, ns, body });
    }

    /// Whether something has waited long enough to be written.
    #[must_use]
    pub fn due(&self) -> bool {
        let waiting = !self.chunk.events.is_empty() || !self.chunk.records.is_empty();
        waiting && self.now().0.saturating_sub(self.chunk.first_ns.0) >= CHUNK_AGE_NS
    }

    /// Hands the chunk on. `low_water` as in [`Chunk`]. An error means that the log has ended: it
    /// cannot be written any more.
    pub fn flush(&mut self, low_water: Stamp, stacks: &mut Interner) -> Result<(), String> {
        if let Some(failure) = self.failure.get() {
            let failure = failure.clone();
            self.drop_events();
            return Err(failure);
        }
        let mut next = self.empty.try_recv().unwrap_or_default();
        std::mem::swap(&mut next, &mut self.chunk);
        next.low_water = low_water;
        stacks.take_new(&mut next.nodes);
        self.send(next)
    }

    fn drop_events(&mut self) {
        let n = self.chunk.events.len() as u64;
        self.lost.fetch_add(n, Ordering::Relaxed);
        self.chunk.events.clear();
    }

    fn send(&mut self, mut chunk: Chunk) -> Result<(), String> {
        let Some(to_writer) = &self.to_writer else {
            return Err("the log is closed".into());
        };
        let begin = self.now();
        let regained = begin.0.saturating_sub(self.since.0) / REGAINED;
        let patience = (self.patience + regained).min(self.most_patience);
        loop {
            let waited = self.now().0.saturating_sub(begin.0);
            self.patience = patience.saturating_sub(waited);
            self.since = Nanos(begin.0 + waited);
            match to_writer.try_send(chunk) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) if self.patience > 0 => {
                    chunk = back;
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(TrySendError::Full(back)) => {
                    self.lost
                        .fetch_add(back.events.len() as u64, Ordering::Relaxed);
                    self.to_writer = None;
                    let why = "the output takes data too slowly, or not at all: the program would \
                               have waited for it";
                    let _ = self.failure.set(why.into());
                    return Err(why.into());
                }
                Err(TrySendError::Disconnected(back)) => {
                    self.lost
                        .fetch_add(back.events.len() as u64, Ordering::Relaxed);
                    let why = self.failure.get().cloned();
                    return Err(why.unwrap_or_else(|| "the writing thread ended".into()));
                }
            }
        }
    }

    /// Bytes of the log that were written so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Events noted so far, and those of them that did not reach the log.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let lost = self.lost.load(Ordering::Relaxed);
        (self.events.saturating_sub(lost), lost)
    }

    /// Hands on what is left; the summary is among it.
    pub fn close(mut self, low_water: Stamp, stacks: &mut Interner) -> Closing {
        if self.failure.get().is_some() {
            self.drop_events();
        }
        let mut last = std::mem::take(&mut self.chunk);
        last.low_water = low_water;
        stacks.take_new(&mut last.nodes);
        // A failure shows in `failure` and in the counts.
        let _ = self.send(last);
        Closing {
            failure: self.failure,
            writer: self.to_writer.is_some().then_some(self.writer),
            events: self.events,
            lost: self.lost,
        }
    }
}

impl Closing {
    /// Whether [`Closing::finish`] need not wait.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.writer.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until all is written. Returns how many events are in the log, how many are not, and what
    /// went wrong with the output, if anything did.
    pub fn finish(self) -> (u64, u64, Option<String>) {
        if self.writer.is_some_and(|writer| writer.join().is_err()) {
            let _ = self.failure.set("the writing thread panicked".into());
        }
        let lost = self.lost.load(Ordering::Relaxed);
        let events = self.events.saturating_sub(lost);
        (events, lost, self.failure.get().cloned())
    }
}

/// What a chunk has to say of the recording as a whole, which lost `lost` events. Nothing else may
/// follow those: it would speak of what they defined.
fn only_summary(chunk: &mut Chunk, lost: u64) {
    chunk.events.clear();
    chunk.nodes.clear();
    (chunk.records).retain_mut(|record| match &mut record.body {
        Body::Summary(summary) => {
            summary.lost = summary.lost.max(lost);
            true
        }
        body => matches!(body, Body::Note(_)),
    });
}

/// Takes back a block that could not be written whole; the log begins at `begin` of its file. A pipe
/// cannot do that: its reader sees a cut log.
fn cut_back(log: &mut LogWriter<File>, begin: Option<u64>) {
    let Some(end) = begin.map(|begin| begin + log.bytes_written()) else {
        return;
    };
    let file = log.get_mut();
    if file.set_len(end).is_ok() && file.seek(SeekFrom::Start(end)).is_ok() {
        log.was_cut_back();
    }
}
