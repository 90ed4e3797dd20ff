//! The whole program on real processes: `maptrail record` on victims that tell the truth about
//! themselves, and the log's commands against that truth.
//!
//! One module a theme. No test measures time, none knows an address.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;

mod attach_refused;
mod bad_input;
mod containers;
mod events;
mod exact;
mod harmless;
mod jit;
mod jobs;
mod launch;
mod leaks;
mod modules;
mod programs;
mod signals;
mod survival;
mod symbols;
mod windows;
