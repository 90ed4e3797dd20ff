//! Tests of the replay on logs made in memory: no process is started and nothing is read from `/proc`.

mod effects;
mod judging;
mod kernel;
mod log;
mod properties;
mod questions;
mod settled;
mod untraced;
