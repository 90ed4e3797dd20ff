//! How stops are made.
//!
//! A mechanism decides two things: how a thread is resumed when nothing is to be seen of it
//! (`seccomp` and later `gate` let it run to the filter's next word; `syscall` to its next call),
//! and whether the target can live without the tracer. Everything else is common to all of them.

pub mod filter;

use maptrail_tracelog::record::Mechanism;

use crate::sys::ptrace::Resume;

/// How a thread is resumed between calls that matter.
#[must_use]
pub fn idle(mechanism: Mechanism) -> Resume {
    if mechanism == Mechanism::Syscall {
        Resume::ToSyscall
    } else {
        Resume::Run
    }
}

/// Whether the tracer's death must take the target with it: without a tracer, every call that a
/// seccomp filter stops fails with ENOSYS, and the filter cannot be removed.
#[must_use]
pub fn needs_exit_kill(mechanism: Mechanism) -> bool {
    mechanism == Mechanism::Seccomp
}
