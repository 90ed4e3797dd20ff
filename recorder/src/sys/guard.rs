//! The guard: timers of the kernel that wake, and then kill, this process if it gives no sign of life.
//!
//! A recorder that is stopped (SIGSTOP, a debugger, a quota of CPU time) would hold the threads that
//! stand for it. Timers of the kernel's own cannot be stopped with it, as a guarding process could.
//! SIGCONT ends a stop by SIGSTOP, and the recorder then leaves in order; SIGKILL reaches a process
//! whatever holds it, and the kernel lets its tracees go.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use super::timer;

/// Signs of life within so many nanoseconds of the last say nothing new.
const BREATH_NS: u64 = 20_000_000;

/// Wakes this process, and then kills it, when [`Guard::alive`] was not called for long.
pub struct Guard {
    wake: Timer,
    kill: Timer,
    /// When it was last told that all is well, CLOCK_MONOTONIC nanoseconds.
    told: Cell<u64>,
}

impl Guard {
    /// From the first sign of life on, this process is sent SIGCONT when it was silent for half of
    /// `limit`, and SIGKILL after all of it.
    pub fn new(limit: Duration) -> io::Result<Guard> {
        Ok(Guard {
            wake: Timer::new(libc::SIGCONT, limit / 2)?,
            kill: Timer::new(libc::SIGKILL, limit)?,
            told: Cell::new(0),
        })
    }

    /// There is nobody left to guard.
    pub fn rest(&self) {
        // A refusal would leave the timers as they were: on guard.
        let _ = self.wake.set(Duration::ZERO);
        let _ = self.kill.set(Duration::ZERO);
    }

    /// A sign of life.
    pub fn alive(&self) {
        let now = timer::monotonic_ns();
        if now.saturating_sub(self.told.get()) < BREATH_NS {
            return;
        }
        self.told.set(now);
        // A refusal would leave the timers as they were: on guard.
        let _ = self.wake.start();
        let _ = self.kill.start();
    }
}

/// Sends this process a signal when it was not started again in time.
struct Timer {
    id: libc::timer_t,
    limit: Duration,
}

impl Timer {
    fn new(signal: libc::c_int, limit: Duration) -> io::Result<Timer> {
        let mut id = ptr::null_mut();
        // SAFETY: all-zero is a valid sigevent; timer_create reads it and writes the timer's id.
        let answer = unsafe {
            let mut event = MaybeUninit::<libc::sigevent>::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_SIGNAL;
            event.sigev_signo = signal;
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id)
        };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Timer { id, limit })
    }

    fn start(&self) -> io::Result<()> {
        self.set(self.limit)
    }

    /// Sends the signal after `time`; never if that is zero.
    fn set(&self, time: Duration) -> io::Result<()> {
        let never = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = libc::itimerspec {
            it_interval: never,
            it_value: libc::timespec {
                tv_sec: time.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(time.subsec_nanos()),
            },
        };
        // SAFETY: timer_settime reads one itimerspec; the timer exists as long as `self`.
        if unsafe { libc::timer_settime(self.id, 0, &raw const once, ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and nobody uses it after this.
        unsafe {
            libc::timer_delete(self.id);
        }
    }
}
