//! What people and scripts read: text and JSON of each command.
//!
//! Views only print. What they print was decided by the model and the verdicts.

pub mod strace;
pub mod text;
pub mod when;
