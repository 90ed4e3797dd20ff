//! The thread that writes a log: compression and the disk, off the tracer's path.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, OnceLock};

use maptrail_tracelog::record::{Body, Header};
use maptrail_tracelog::writer::{Chunk, LogWriter};

use super::place::empty;

/// The writing thread's side.
pub struct Writing {
    /// What is to be written.
    pub chunks: Receiver<Chunk>,
    /// Where chunks go that are.
    pub recycle: Sender<Chunk>,
    /// What went wrong, if anything did.
    pub failure: Arc<OnceLock<String>>,
    /// Events that came and were not written.
    pub lost: Arc<AtomicU64>,
    /// Bytes of the log so far.
    pub written: Arc<AtomicU64>,
}

/// How a log begins.
pub enum Begin {
    /// Its header is written.
    Done(Box<LogWriter<File>>),
    /// With its first chunk.
    Later {
        /// Where it goes.
        file: File,
        /// What the file holds stays.
        keeps: bool,
        /// Set when it begins.
        header: Arc<OnceLock<Header>>,
    },
}

impl Begin {
    /// `None` if the log never began.
    fn log(self) -> io::Result<Option<LogWriter<File>>> {
        match self {
            Begin::Done(log) => Ok(Some(*log)),
            Begin::Later {
                file,
                keeps,
                header,
            } => {
                let Some(header) = header.get() else {
                    return Ok(None);
                };
                if !keeps {
                    empty(&file)?;
                }
                LogWriter::create(file, header).map(Some)
            }
        }
    }
}

impl Writing {
    /// Writes until there is no tracer any more, or the output fails.
    pub fn write_all(self, begin: Begin) {
        let Ok(first) = self.chunks.recv() else {
            return;
        };
        let mut log = match begin.log() {
            Ok(Some(log)) => log,
            Ok(None) => return,
            Err(error) => {
                self.failed(&error);
                self.drop_all(first);
                return;
            }
        };
        // A log on stdout may begin behind something else. A pipe has no position.
        let end = log.get_mut().stream_position().ok();
        let begin = end.and_then(|end| end.checked_sub(log.bytes_written()));
        let mut next = Some(first);
        while let Some(mut chunk) = next {
            let empty =
                chunk.nodes.is_empty() && chunk.records.is_empty() && chunk.events.is_empty();
            let written = if empty {
                Ok(())
            } else {
                log.write_chunk(&chunk)
            };
            if let Err(error) = written {
                self.failed(&error);
                cut_back(&mut log, begin);
                // What can still be said is the closing summary, if it fits. The tracer has seen
                // the failure and sends nothing else any more.
                let mut closing = self.drop_all(chunk);
                only_summary(&mut closing, self.lost.load(Ordering::Relaxed));
                if log.write_chunk(&closing).is_err() {
                    cut_back(&mut log, begin);
                }
                return;
            }
            self.written.store(log.bytes_written(), Ordering::Relaxed);
            chunk.nodes.clear();
            chunk.records.clear();
            chunk.events.clear();
            let _ = self.recycle.send(chunk);
            next = self.chunks.recv().ok();
        }
        if let Err(error) = log.finish() {
            self.failed(&error);
            cut_back(&mut log, begin);
        }
    }

    fn failed(&self, error: &io::Error) {
        let _ = self.failure.set(error.to_string());
    }

    /// Counts what comes as lost, up to the last chunk, and gives that.
    fn drop_all(&self, mut chunk: Chunk) -> Chunk {
        loop {
            let lost = chunk.events.len() as u64;
            self.lost.fetch_add(lost, Ordering::Relaxed);
            match self.chunks.recv() {
                Ok(next) => chunk = next,
                Err(_) => return chunk,
            }
        }
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
