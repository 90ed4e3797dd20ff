//! Rebuilds address spaces from a maptrail log, and judges what is never released.
//!
//! # Effect order
//! Two threads' calls overlap, and a log holds them in the order in which they ended, which is not
//! the order in which the kernel ran them. A release takes effect at its entry stamp, an acquisition
//! at its exit stamp; [`timeline`] puts them so. Replayed otherwise, a range that one thread unmaps
//! and the kernel hands to another's `mmap` would be lost.
//!
//! # How it is built
//! A [`region::Region`] is a value. A [`space::Space`] is one ordered map of them, changed by
//! `apply(op)`. [`replay::replay`] makes one pass over a log, keeps the [`world::World`], and tells an
//! [`observer::Observer`]. [`leaks`], [`check`], [`usage`], [`maps_at`] and [`who`] are observers;
//! the views print what those found.
//!
//! **Invariant**: nothing here opens `/proc`, nor touches a live process. It builds on any system.
#![forbid(unsafe_code)]

pub mod births;
pub mod calls;
pub mod check;
pub mod files;
pub mod leaks;
pub mod maps_at;
pub mod observer;
pub mod op;
pub mod region;
pub mod replay;
pub mod residency;
mod series;
mod settle;
pub mod space;
pub mod symbols;
pub mod timeline;
pub mod untraced;
pub mod usage;
pub mod views;
pub mod who;
pub mod world;

use std::io::{self, Read, Seek};

use maptrail_tracelog::reader::LogReader;
use maptrail_tracelog::types::{Nanos, StackId};
use maptrail_tracelog::writer::Chunk;

use crate::timeline::Source;

/// Why a question to a log has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be read.
    #[error("cannot read the log: {0}")]
    Read(#[from] io::Error),
    /// A time that the log does not cover.
    #[error("{:.3} s is outside the window, which is {:.3} s long", at.as_secs_f64(), window.as_secs_f64())]
    OutsideWindow {
        /// The time asked for.
        at: Nanos,
        /// The window's last instant.
        window: Nanos,
    },
}

impl<R: Read + Seek> Source for LogReader<R> {
    fn next_chunk(&mut self, chunk: &mut Chunk) -> io::Result<bool> {
        LogReader::next_chunk(self, chunk)
    }

    fn first_node(&self) -> StackId {
        LogReader::first_node(self)
    }

    fn last(&self) -> Nanos {
        self.span().map_or(Nanos(0), |(_, last)| last)
    }

    fn rewind(&mut self) {
        LogReader::rewind(self);
    }
}
