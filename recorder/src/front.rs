//! What the tracer's process tells the front process (the one that the user started): remarks while
//! it runs, and a report with the descriptors of modules and perf maps when the log is complete.
//!
//! The tracer never waits for the front process, which job control may have stopped: a message that
//! does not fit into the socket is dropped, and the first [`MAX_NOTES`] remarks always fit.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bincode::config::standard;
use bincode::{Decode, Encode};
use maptrail_tracelog::record::Mechanism;
use maptrail_tracelog::types::{ModuleId, SpaceId};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

use crate::perf_map::PerfMap;
use crate::sys::open::received_file;

/// Remarks that are handed on; the log holds all of them.
const MAX_NOTES: u32 = 50;
/// Longest message, bytes.
const MAX_MESSAGE: usize = 16 << 10;
/// Descriptors in one message (the kernel's limit is 253).
const BATCH: usize = 64;

/// The recording in numbers.
#[derive(Clone, Debug, Default, Encode, Decode)]
pub struct Report {
    /// Events in the log.
    pub events: u64,
    /// Events seen and not in the log.
    pub lost: u64,
    /// Calls whose effect was settled by looking at the kernel.
    pub settled: u64,
    /// Stops taken.
    pub stops: u64,
    /// Time that threads spent in them, nanoseconds.
    pub stopped_ns: u64,
    /// Length of the window, nanoseconds.
    pub window_ns: u64,
    /// Spaces seen.
    pub spaces: u64,
    /// Threads seen.
    pub threads: u64,
    /// Checkpoints taken.
    pub checkpoints: u64,
    /// What went wrong with the output.
    pub output_failure: Option<String>,
    /// The limit that closed the window, in words.
    pub limit: Option<String>,
}

/// A recording that was made.
pub struct Recording {
    /// How stops were made.
    pub mechanism: Mechanism,
    /// The log is still being written: the user would not wait for its end.
    pub interrupted: bool,
    /// The recording in numbers; `None` if the tracer was killed before the log was complete.
    pub report: Option<Report>,
    /// Modules that frames lie in, as they were when they were mapped.
    pub modules: Vec<(ModuleId, File)>,
    /// What just-in-time compilers wrote down of their code.
    pub perf_maps: Vec<PerfMap>,
}

#[derive(Encode, Decode)]
enum Message {
    Note(String),
    Started(String),
    /// As many descriptors as ids come with it.
    Modules(Vec<u32>),
    /// The space and the length of each; as many descriptors come with it.
    PerfMaps(Vec<(u32, u64)>),
    Done(Report),
    Refused(String),
}

/// What the front process hears.
pub enum Heard {
    /// A remark.
    Note(String),
    /// The window of a program that ran before is open.
    Started(String),
    /// Open files of modules.
    Modules(Vec<(ModuleId, File)>),
    /// Open perf maps.
    PerfMaps(Vec<PerfMap>),
    /// The log is complete.
    Done(Report),
    /// Nothing was recorded, for this reason.
    Refused(String),
    /// The tracer's process is gone.
    Gone,
}

/// The tracer's end.
pub struct ToFront {
    socket: OwnedFd,
    notes: u32,
}

/// The front process's end.
pub struct FromTracer {
    socket: OwnedFd,
}

/// Both ends.
pub fn pair() -> io::Result<(ToFront, FromTracer)> {
    let (a, b) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok((
        ToFront {
            socket: a,
            notes: 0,
        },
        FromTracer { socket: b },
    ))
}

impl ToFront {
    /// A remark for the user.
    pub fn note(&mut self, text: &str) {
        self.notes += 1;
        if self.notes <= MAX_NOTES {
            let text: String = text.chars().take(2000).collect();
            self.send(&Message::Note(text), &[]);
        }
    }

    /// The window is open: on what, in words.
    pub fn started(&self, text: &str) {
        self.send(&Message::Started(text.into()), &[]);
    }

    /// Nothing can be recorded.
    pub fn refused(&self, cause: &str) {
        self.send(&Message::Refused(cause.into()), &[]);
    }

    /// Another handle for the same front process.
    pub fn try_clone(&self) -> io::Result<ToFront> {
        Ok(ToFront {
            socket: self.socket.try_clone()?,
            notes: self.notes,
        })
    }

    /// The log is complete.
    pub fn done<'a>(
        &mut self,
        report: &Report,
        modules: impl Iterator<Item = (ModuleId, &'a File)>,
        perf_maps: &[PerfMap],
    ) {
        let modules: Vec<_> = modules.collect();
        for batch in modules.chunks(BATCH) {
            let ids = batch.iter().map(|(id, _)| id.0).collect();
            let fds: Vec<RawFd> = batch.iter().map(|(_, file)| file.as_raw_fd()).collect();
            self.send(&Message::Modules(ids), &fds);
        }
        for batch in perf_maps.chunks(BATCH) {
            let what = batch.iter().map(|map| (map.space.0, map.length)).collect();
            let fds: Vec<RawFd> = batch.iter().map(|map| map.file.as_raw_fd()).collect();
            self.send(&Message::PerfMaps(what), &fds);
        }
        self.send(&Message::Done(report.clone()), &[]);
    }

    /// A front process that is gone, or does not read, is no concern of the tracer's.
    fn send(&self, message: &Message, fds: &[RawFd]) {
        let Ok(bytes) = bincode::encode_to_vec(message, standard()) else {
            return;
        };
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let iov = [IoSlice::new(&bytes)];
        let _ = sendmsg::<()>(self.socket.as_raw_fd(), &iov, control, flags, None);
    }
}

impl AsRawFd for ToFront {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsRawFd for FromTracer {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl FromTracer {
    /// Waits for the next message.
    pub fn hear(&self) -> io::Result<Heard> {
        let mut bytes = [0u8; MAX_MESSAGE];
        let mut control = nix::cmsg_space!([RawFd; BATCH]);
        let (length, files) = {
            let mut iov = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received =
                match recvmsg::<()>(self.socket.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                    Err(nix::Error::ECONNRESET) => return Ok(Heard::Gone),
                    answer => answer?,
                };
            let mut files = Vec::new();
            // If the descriptors were too many for this process, names are read from paths.
            for message in received.cmsgs().into_iter().flatten() {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    files.extend(fds.into_iter().map(received_file));
                }
            }
            (received.bytes, files)
        };
        if length == 0 {
            return Ok(Heard::Gone);
        }
        let raw = bytes.get(..length).unwrap_or_default();
        let (message, _) = bincode::decode_from_slice(raw, standard()).map_err(io::Error::other)?;
        Ok(match message {
            Message::Note(text) => Heard::Note(text),
            Message::Started(text) => Heard::Started(text),
            Message::Modules(ids) => {
                Heard::Modules(ids.into_iter().map(ModuleId).zip(files).collect())
            }
            Message::PerfMaps(what) => {
                let map = |((space, length), file)| PerfMap {
                    space: SpaceId(space),
                    file,
                    length,
                };
                Heard::PerfMaps(what.into_iter().zip(files).map(map).collect())
            }
            Message::Done(report) => Heard::Done(report),
            Message::Refused(cause) => Heard::Refused(cause),
        })
    }
}
