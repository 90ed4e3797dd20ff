//! Waits that go on after a signal that the program ignores, and end when they would have ended.
//!
//! For such a signal the kernel wakes no thread, unless it is traced. The wait is then made again (see
//! [`super::interruption`]), and its timeout would begin anew with each signal. Where it is in a register
//! (`epoll_wait`, `epoll_pwait`), what is left of it takes its place.

use maptrail_tracelog::calls::Abi;

use super::interruption::IGNORED_BY_DEFAULT;
use super::{StopError, Stopped, Tracer};
use crate::proc;
use crate::sys::timer;

/// `epoll_wait` and `epoll_pwait`.
const WAITS: [u64; 2] = [232, 281];
const NS_PER_MS: u64 = 1_000_000;

/// A wait with a timeout that a thread is in.
#[derive(Clone, Copy)]
pub struct Wait {
    number: u64,
    /// When it is to end, CLOCK_MONOTONIC nanoseconds.
    until: u64,
    /// What the program asked for, where that is not in its register any more.
    asked: Option<u64>,
}

impl Wait {
    /// The wait that a call begins `now`, if it is one; or `before`, if that goes on.
    #[must_use]
    pub fn entered(
        before: Option<Wait>,
        abi: Abi,
        number: u64,
        args: &[u64; 6],
        now: impl FnOnce() -> u64,
    ) -> Option<Wait> {
        if abi != Abi::X86_64 || !WAITS.contains(&number) {
            return None;
        }
        let goes_on = |wait: &Wait| wait.is_shortened() && wait.number == number;
        before.filter(goes_on).or_else(|| {
            // Negative is without end.
            let ms = u64::try_from(args[3] as i32).ok()?;
            Some(Wait {
                number,
                until: now().saturating_add(ms.saturating_mul(NS_PER_MS)),
                asked: None,
            })
        })
    }

    /// Whether the program's register is to be put back when it ends.
    #[must_use]
    pub fn is_shortened(&self) -> bool {
        self.asked.is_some()
    }

    /// What is left of it, milliseconds.
    fn left(&self, now: u64) -> u64 {
        self.until.saturating_sub(now).div_ceil(NS_PER_MS)
    }
}

impl Tracer {
    /// A thread's wait was broken off and is about to be made again.
    pub(super) fn wait_goes_on(&mut self, stopped: &Stopped) -> Result<(), StopError> {
        let tid = stopped.tid();
        // A handler is about to run, and the call returns after it.
        if proc::awaits_signal(tid, &IGNORED_BY_DEFAULT) {
            return self.wait_ends(stopped);
        }
        let wait = self.threads.get_mut(&tid).and_then(|t| t.wait.as_mut());
        if let Some(wait) = wait {
            let mut regs = stopped.regs()?;
            wait.asked.get_or_insert(regs.r10);
            regs.r10 = wait.left(timer::monotonic_ns());
            stopped.set_regs(&regs)?;
        }
        Ok(())
    }

    /// A thread comes out of its wait: the program finds its registers as it left them.
    pub(super) fn wait_ends(&mut self, stopped: &Stopped) -> Result<(), StopError> {
        let thread = self.threads.get_mut(&stopped.tid());
        let wait = thread.and_then(|thread| thread.wait.take());
        if let Some(asked) = wait.and_then(|wait| wait.asked) {
            let mut regs = stopped.regs()?;
            regs.r10 = asked;
            stopped.set_regs(&regs)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(before: Option<Wait>, timeout: i32, now: u64) -> Option<Wait> {
        let args = [3, 0x1000, 8, u64::from(timeout.cast_unsigned()), 0, 0];
        Wait::entered(before, Abi::X86_64, 232, &args, || now)
    }

    #[test]
    fn a_wait_that_goes_on_keeps_its_end() {
        let first = entered(None, 1000, 5 * NS_PER_MS).expect("a wait");
        assert_eq!(first.left(5 * NS_PER_MS), 1000);
        let shortened = Wait {
            asked: Some(1000),
            ..first
        };
        let again = entered(Some(shortened), 400, 605 * NS_PER_MS).expect("a wait");
        assert_eq!(again.left(605 * NS_PER_MS), 400);
        assert_eq!(again.left(2000 * NS_PER_MS), 0, "it is over");
    }

    #[test]
    fn a_new_wait_has_an_end_of_its_own_or_none() {
        let first = entered(None, 1000, 0);
        let next = entered(first, 1000, 700 * NS_PER_MS).expect("a wait");
        assert_eq!(next.left(700 * NS_PER_MS), 1000);
        assert!(entered(None, -1, 0).is_none());
    }
}
