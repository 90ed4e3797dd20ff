//! Records the memory system calls of live processes: ptrace, mechanisms, unwinding.
//!
//! It writes what it sees to a log (`maptrail-tracelog`) and never judges it; names of functions,
//! the model of the address space and the verdicts are the replay's.
//!
//! ```text
//! launch      starts a program; the processes that take part
//! attach      takes up a program that runs
//! target      a running process, before anything is done to it
//! refusal     why the kernel refuses to have it traced
//! background  the tracer's process, which launch and attach have in common
//! footprint   what that takes of the machine
//! tracer      the loop, and what happens at each kind of stop
//! mechanism   how stops are made: the seccomp filter
//! unwind      from registers and stack memory to frames
//! code, maps, residency, proc    what the kernel says of a space
//! perf_map    what a just-in-time compiler says of its code
//! patience    questions that a recorded process may have to answer
//! journal     from the tracer to the log's file
//! front       from the tracer to the process that the user started
//! core        which core the tracer runs on
//! sys         the only place with unsafe code
//! ```

#![deny(unsafe_code)]

mod attach;
mod background;
mod code;
mod core;
mod error;
mod footprint;
mod front;
mod image;
mod journal;
mod launch;
mod maps;
mod mechanism;
mod patience;
mod perf_map;
mod proc;
mod refusal;
mod residency;
#[allow(
    unsafe_code,
    reason = "this is the place for it: each block says why it is sound"
)]
mod sys;
mod target;
mod tracer;
pub mod unwind;

pub use attach::{AttachOptions, attach};
pub use error::Error;
pub use front::{Recording, Report};
pub use glob::Pattern;
pub use journal::create;
pub use launch::{Ended, Options, find_program, record};
pub use perf_map::PerfMap;
pub use target::{Choice, Target};
