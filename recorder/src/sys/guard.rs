//! The guard: a kernel timer that kills this process if it gives no sign of life.
//!
//! A recorder that is stopped (SIGSTOP, a debugger, a quota of CPU time) would hold the threads that
//! stand for it. A timer of the kernel's own cannot be stopped with it, as a guarding process could,
//! and SIGKILL is the one signal that reaches a stopped process; the kernel then lets its tracees go.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

/// Kills this process when [`Guard::alive`] was not called for longer than its limit.
pub struct Guard {
    timer: libc::timer_t,
    limit: Duration,
}

impl Guard {
    /// On guard from now on.
    pub fn new(limit: Duration) -> io::Result<Guard> {
        let mut timer = ptr::null_mut();
        // SAFETY: all-zero is a valid sigevent; timer_create reads it and writes the timer's id.
        let answer = unsafe {
            let mut event = MaybeUninit::<libc::sigevent>::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = libc::SIGKILL;
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        let guard = Guard { timer, limit };
        guard.set(limit)?;
        Ok(guard)
    }

    /// A sign of life.
    pub fn alive(&self) {
        // A refusal would leave the timer as it was: on guard.
        let _ = self.set(self.limit);
    }

    fn set(&self, time: Duration) -> io::Result<()> {
        let once = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: time.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(time.subsec_nanos()),
            },
        };
        // SAFETY: timer_settime reads one itimerspec; the timer exists as long as `self`.
        if unsafe { libc::timer_settime(self.timer, 0, &raw const once, ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and nobody uses it after this.
        unsafe {
            libc::timer_delete(self.timer);
        }
    }
}
