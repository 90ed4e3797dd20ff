//! How stops are made.
//!
//! A mechanism decides how a thread is resumed when nothing is to be seen of it (`seccomp` and later
//! `gate` let it run to the filter's next word; `syscall` to its next call), whether a filter of ours is
//! in the target, and whether the target can live without the tracer. All else is common to them.

pub mod filter;

use maptrail_tracelog::record::Mechanism;

use crate::sys::ptrace::{Resume, Tracing};
use crate::sys::wait::Stops;

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
pub fn binds(mechanism: Mechanism) -> bool {
    mechanism == Mechanism::Seccomp
}

/// How threads are traced; processes that they make are traced as well if `forks`.
#[must_use]
pub fn tracing(mechanism: Mechanism, forks: bool) -> Tracing {
    Tracing {
        filtered: mechanism != Mechanism::Syscall,
        dies_with_us: binds(mechanism),
        // Without a tracer a child's memory calls would fail.
        forks: forks || binds(mechanism),
    }
}

/// Whether stops are taken: a target that dies with its tracer loses no signal by that.
#[must_use]
pub fn stops(mechanism: Mechanism) -> Stops {
    if binds(mechanism) {
        Stops::Taken
    } else {
        Stops::Peeked
    }
}
