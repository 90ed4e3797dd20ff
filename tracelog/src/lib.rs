//! The log format of maptrail.
#![forbid(unsafe_code)]

mod block;
pub mod calls;
mod chunk;
mod columns;
mod events;
mod index;
mod meta;
pub mod reader;
pub mod record;
mod section;
pub mod types;
mod varint;
pub mod writer;
