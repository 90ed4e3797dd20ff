//! What people and scripts read: text and JSON of each command.
//!
//! Views only print. What they print was decided by the model and the verdicts; nothing here judges.
//! Strings of the recorded program are escaped wherever they reach a text view; JSON escapes them by
//! its own rules.

pub mod events;
pub mod info;
pub mod leaks;
pub mod maps;
mod stack;
pub mod strace;
pub mod text;
pub mod timeline;
pub mod verify;
pub mod when;
pub mod who;

use std::io::{self, Write};

use serde::Serialize;

/// Writes a value as JSON for people and programs: indented, one document.
///
/// # Errors
/// Those of the output.
pub fn write_json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    out.write_all(b"\n")
}
