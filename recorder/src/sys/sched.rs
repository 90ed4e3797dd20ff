//! Scheduling classes of our own threads.

use std::io;
use std::mem::MaybeUninit;

use libc::{c_int, pid_t};
use maptrail_tracelog::types::Tid;

/// The calling thread.
#[must_use]
pub fn this_thread() -> Tid {
    Tid(nix::unistd::gettid().as_raw() as u32)
}

/// The core that the calling thread runs on.
#[must_use]
pub fn this_core() -> Option<usize> {
    // SAFETY: sched_getcpu takes nothing.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// Whether the calling thread is in the usual class, `SCHED_OTHER`.
#[must_use]
pub fn is_usual() -> bool {
    // SAFETY: sched_getscheduler takes an integer.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

/// Puts a thread into the idle class (`SCHED_IDLE`, sched(7)), or back into the usual one, which
/// needs CAP_SYS_NICE or a high enough RLIMIT_NICE.
pub fn set_idle(tid: Tid, idle: bool) -> io::Result<()> {
    let policy: c_int = if idle {
        libc::SCHED_IDLE
    } else {
        libc::SCHED_OTHER
    };
    // SAFETY: an all-zero sched_param is what both classes ask for; the call reads it.
    let answer = unsafe {
        let parameters = MaybeUninit::<libc::sched_param>::zeroed().assume_init();
        libc::sched_setscheduler(tid.0 as pid_t, policy, &raw const parameters)
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
