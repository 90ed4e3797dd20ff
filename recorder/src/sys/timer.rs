//! A periodic tick that interrupts a blocking wait.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::seize;

static TICKED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_alarm(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    TICKED.store(true, Ordering::Relaxed);
    // SAFETY: it is the handler's third argument.
    unsafe { seize::give_up(context) };
}

/// Whether there was a tick since the last call. A tracer that never has to wait is never
/// interrupted, so it must ask.
pub fn ticked() -> bool {
    // A plain load first: the exchange locks the cache line.
    TICKED.load(Ordering::Relaxed) && TICKED.swap(false, Ordering::Relaxed)
}

/// Sends SIGALRM to this process every `interval` from now on; a blocking system call then
/// returns with EINTR, and [`ticked`] is true once.
pub fn start(interval: Duration) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid; the handler touches nothing but the place that it came from.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = on_alarm as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        if libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        unblock(libc::SIGALRM);
    }
    set(interval)
}

/// No more ticks.
pub fn stop() -> io::Result<()> {
    set(Duration::ZERO)
}

/// Ticks, which were started once, come every `interval` from now on.
pub fn set(interval: Duration) -> io::Result<()> {
    let tick = libc::timeval {
        tv_sec: interval.as_secs() as libc::time_t,
        tv_usec: libc::suseconds_t::from(interval.subsec_micros()),
    };
    let timer = libc::itimerval {
        it_interval: tick,
        it_value: tick,
    };
    // SAFETY: setitimer reads one itimerval.
    if unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Blocks every signal for the calling thread, so that ticks interrupt only the thread that waits.
pub fn block_signals_in_this_thread() {
    // SAFETY: the set is filled before use; the call changes this thread's mask only.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

fn unblock(signal: libc::c_int) {
    // SAFETY: as above.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut());
    }
}

/// CLOCK_MONOTONIC, nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime writes one timespec; CLOCK_MONOTONIC always exists.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
    }
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
