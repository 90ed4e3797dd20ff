//! One short file a command: its arguments, one call, its result.

pub mod attach;
pub mod events;
pub mod info;
pub mod leaks;
pub mod maps;
pub mod record;
pub mod recording;
pub mod symbolize;
pub mod timeline;
pub mod verify;
pub mod who;
