//! The log format of maptrail.

pub mod calls;
mod columns;
mod block;
mod meta;
pub mod reader;
pub mod record;
pub mod types;
pub mod writer;
