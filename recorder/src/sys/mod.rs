//! Everything that needs `unsafe`: thin, typed wrappers around the kernel's interfaces.
//!
//! Each wrapper does one system call (or one dance that only makes sense whole, such as a fork with
//! its child side) and says what it means when the target dies meanwhile. No policy lives here.

pub mod asked;
pub mod attribute;
pub mod guard;
pub mod memory;
pub mod open;
pub mod pidfd;
pub mod procmap;
pub mod ptrace;
pub mod sched;
pub mod seize;
pub mod spawn;
pub mod startup;
pub mod timer;
pub mod usage;
pub mod wait;
