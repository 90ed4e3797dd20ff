//! Collects what the tracer sees into chunks and has them written by a thread of their own, so that
//! compression and the disk are off the tracer's path.

mod place;
mod writing;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use maptrail_tracelog::record::{Body, CallEvent, Header, Mechanism, Record};
use maptrail_tracelog::types::{Nanos, PAGE, Stamp};
use maptrail_tracelog::writer::{Chunk, LogWriter};

use crate::sys::timer;
use crate::unwind::Interner;

pub use place::{create, empty};

use writing::{Begin, Writing};

/// A chunk is handed on at this many events, whatever its age.
const CHUNK_EVENTS: usize = 8192;
/// Or at this age. The promise is one second; the tick that looks at the age is coarser than this.
const CHUNK_AGE_NS: u64 = 400_000_000;
/// Chunks that may wait for the disk (about 1 MiB each) before the tracer waits as well.
const WAITING_CHUNKS: usize = 32;
/// What was waited comes back at one part in so many of the time that passes: nor is it held again
/// and again by one that is too slow.
const REGAINED: u64 = 20;

/// The head of a log that begins now.
#[must_use]
pub fn header(command: Vec<String>, mechanism: Mechanism, monotonic_start_ns: u64) -> Header {
    let (host, kernel) = nix::sys::utsname::uname().map_or_else(
        |_| (String::new(), String::new()),
        |u| {
            let text = |s: &OsStr| s.to_string_lossy().into_owned();
            let kernel = format!("{} {}", text(u.release()), text(u.version()));
            (text(u.nodename()), kernel)
        },
    );
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Header {
        writer: env!("CARGO_PKG_VERSION").into(),
        host,
        kernel,
        command,
        mechanism,
        wall_start_ns: since_epoch.as_nanos() as u64,
        monotonic_start_ns,
        page_size: PAGE as u32,
    }
}

/// The way from the tracer to the log.
pub struct Journal {
    chunk: Chunk,
    start_ns: u64,
    header: Arc<OnceLock<Header>>,
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
        let log = LogWriter::create(file, header)?;
        let mut journal = Journal::start(Begin::Done(Box::new(log)), patience)?;
        journal.start_ns = start_ns;
        Ok(journal)
    }

    /// Starts the writing thread for a log that begins with [`Journal::begin`]. Nothing is written, nor
    /// emptied, until then, and then by that thread: nobody waits for the disk.
    pub fn prepare(file: File, keeps: bool, patience: Duration) -> io::Result<Journal> {
        let header = Arc::new(OnceLock::new());
        let begin = Begin::Later {
            file,
            keeps,
            header: Arc::clone(&header),
        };
        let mut journal = Journal::start(begin, patience)?;
        journal.header = header;
        Ok(journal)
    }

    /// The log begins now: its times count from `start_ns`.
    pub fn begin(&mut self, header: Header, start_ns: u64) {
        self.start_ns = start_ns;
        // It begins once.
        let _ = self.header.set(header);
        if let Some(to_writer) = &self.to_writer {
            // An empty chunk: time to write the header. If that is refused the first full one is.
            let _ = to_writer.try_send(Chunk::default());
        }
    }

    fn start(begin: Begin, patience: Duration) -> io::Result<Journal> {
        let (to_writer, chunks) = sync_channel::<Chunk>(WAITING_CHUNKS);
        let (recycle, empty) = channel();
        let writing = Writing {
            chunks,
            recycle,
            failure: Arc::default(),
            lost: Arc::default(),
            written: Arc::default(),
        };
        let (failure, lost) = (Arc::clone(&writing.failure), Arc::clone(&writing.lost));
        let written = Arc::clone(&writing.written);
        let work = move || {
            timer::block_signals_in_this_thread();
            writing.write_all(begin);
        };
        let writer = std::thread::Builder::new()
            .name("maptrail-log".into())
            .spawn(work)?;
        Ok(Journal {
            chunk: Chunk::default(),
            start_ns: 0,
            header: Arc::default(),
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
