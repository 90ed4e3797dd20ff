//! Transfers that a signal cut short which the program ignores.
//!
//! For such a signal the kernel wakes no thread, unless it is traced. Then a transfer that is under way
//! returns how far it came, and a program that never had to expect that takes it for an error. A tracer
//! that sees the exits of all calls has the rest transferred, too: the thread makes the call once more,
//! for what is left, and its result becomes the sum. (If the tracer dies during that second call, the
//! thread is told of its part only.)

use maptrail_tracelog::calls::Abi;
use maptrail_tracelog::types::Tid;

use super::interruption::{IGNORED_BY_DEFAULT, SYSCALL};
use super::{Resume, StopError, Stopped, Tracer};
use crate::proc;
use crate::sys::pidfd;

const WRITE: u64 = 1;
const SENDTO: u64 = 44;
const RECVFROM: u64 = 45;
const MSG_WAITALL: u64 = 0x100;
const MSG_NOSIGNAL: u64 = 0x4000;
/// The kernel's own results for calls that start again by themselves: ERESTARTSYS and its kin.
const STARTS_AGAIN: std::ops::RangeInclusive<i64> = -516..=-512;

/// A transfer that a thread is in.
#[derive(Clone, Copy)]
pub struct Transfer {
    number: u64,
    fd: u64,
    buffer: u64,
    len: u64,
    /// What calls before this one have transferred of it.
    done: u64,
}

impl Transfer {
    /// A call that returns short only if it is disturbed, should its descriptor be the right one.
    #[must_use]
    pub fn of_call(abi: Abi, number: u64, args: &[u64; 6]) -> Option<Transfer> {
        let [fd, buffer, len, flags, address, _] = *args;
        let whole = match number {
            WRITE => true,
            SENDTO => flags & !MSG_NOSIGNAL == 0 && address == 0,
            RECVFROM => flags == MSG_WAITALL,
            _ => false,
        };
        (whole && abi == Abi::X86_64).then_some(Transfer {
            number,
            fd,
            buffer,
            len,
            done: 0,
        })
    }

    /// Whether the descriptor is one that gives or takes everything, however long that lasts: a pipe, or
    /// a connection without a time limit.
    fn is_patient(&self, tid: Tid) -> bool {
        let file = proc::descriptor(tid, self.fd);
        match self.number {
            WRITE if file.starts_with("pipe:") => !proc::is_nonblocking(tid, self.fd),
            _ if file.starts_with("socket:") => {
                let pid = proc::process_of(tid);
                pid.is_some_and(|pid| pidfd::is_patient_stream(pid, self.fd))
            }
            _ => false,
        }
    }
}

/// What a thread is about to transfer, or transfers.
#[derive(Clone, Copy, Default)]
pub struct Transfers {
    /// The call that it is in.
    current: Option<Transfer>,
    /// The rest that it is to go back for.
    rest: Option<Transfer>,
}

impl Transfers {
    /// Whether the thread transfers a rest, or is to go back for it: its tracer cannot leave it.
    #[must_use]
    pub fn are_unfinished(&self) -> bool {
        self.rest.is_some() || self.current.is_some_and(|transfer| transfer.done > 0)
    }

    /// The thread enters a call. A handler may run, and make calls, before it comes to the rest.
    pub fn entered(&mut self, abi: Abi, number: u64, args: &[u64; 6]) {
        let transfer = Transfer::of_call(abi, number, args);
        let is_rest = |rest: &mut Transfer| {
            transfer.is_some_and(|t| {
                (t.number, t.fd, t.buffer, t.len)
                    == (
                        rest.number,
                        rest.fd,
                        rest.buffer + rest.done,
                        rest.len - rest.done,
                    )
            })
        };
        self.current = self.rest.take_if(is_rest).or(transfer);
    }
}

impl Tracer {
    /// A thread comes out of a call with `value`. If that was a transfer, cut short for no reason of the
    /// program's, it goes back for the rest; gives the stop back otherwise.
    pub(super) fn after_transfer(
        &mut self,
        stopped: Stopped,
        value: i64,
    ) -> Result<Option<Stopped>, StopError> {
        if self.goes_back(&stopped, value)? {
            self.go(stopped, Resume::ToSyscall, 0)?;
            return Ok(None);
        }
        Ok(Some(stopped))
    }

    /// A thread was interrupted when it slept, it seemed, in a call that survives that. If it had gone on to
    /// a transfer meanwhile, that is made good.
    pub(super) fn interrupted_in_transfer(&mut self, stopped: &Stopped) -> Result<(), StopError> {
        let regs = stopped.regs()?;
        let value = regs.rax.cast_signed();
        let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
        let x86_64 = stopped.syscall_info()?.abi == Some(Abi::X86_64);
        let transfer = Transfer::of_call(Abi::X86_64, regs.orig_rax, &args);
        if let Some(transfer) = transfer.filter(|_| x86_64 && value > 0)
            && let Some(thread) = self.threads.get_mut(&stopped.tid())
        {
            thread.transfers.current = Some(transfer);
            self.goes_back(stopped, value)?;
        }
        Ok(())
    }

    /// Prepares a thread whose transfer came back with `value` to make it once more for the rest, if there
    /// is one that it should not know of; and tells it of the whole when there is none.
    fn goes_back(&mut self, stopped: &Stopped, value: i64) -> Result<bool, StopError> {
        let tid = stopped.tid();
        let Some(thread) = self.threads.get_mut(&tid) else {
            return Ok(false);
        };
        let Some(transfer) = thread.transfers.current.take() else {
            return Ok(false);
        };
        // A handler is about to run, which may make an error of that: then what was moved is told.
        let told = transfer.done > 0 && proc::awaits_signal(tid, &IGNORED_BY_DEFAULT);
        if STARTS_AGAIN.contains(&value) && !told {
            thread.transfers.rest = Some(transfer).filter(|t| t.done > 0);
            return Ok(false);
        }
        let moved = u64::try_from(value).unwrap_or(0);
        let done = transfer.done.saturating_add(moved);
        let short = moved > 0 && done < transfer.len;
        if short && !proc::awaits_signal(tid, &IGNORED_BY_DEFAULT) && transfer.is_patient(tid) {
            thread.transfers.rest = Some(Transfer { done, ..transfer });
            let mut regs = stopped.regs()?;
            regs.rip = regs.rip.wrapping_sub(SYSCALL);
            regs.rax = transfer.number;
            regs.orig_rax = u64::MAX;
            regs.rsi = transfer.buffer.wrapping_add(done);
            regs.rdx = transfer.len - done;
            stopped.set_regs(&regs)?;
            return Ok(true);
        }
        if transfer.done > 0 {
            let mut regs = stopped.regs()?;
            // What the last part ran into is told of by the program's next call.
            regs.rax = done;
            (regs.rsi, regs.rdx) = (transfer.buffer, transfer.len);
            stopped.set_regs(&regs)?;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_known_again_whatever_calls_a_handler_makes() {
        let mut transfers = Transfers::default();
        let whole = [3, 0x1000, 100, 0, 0, 0];
        transfers.entered(Abi::X86_64, WRITE, &whole);
        let cut = transfers.current.map(|t| Transfer { done: 40, ..t });
        transfers.rest = cut;
        transfers.entered(Abi::X86_64, WRITE, &[3, 0x9000, 60, 0, 0, 0]);
        assert_eq!(transfers.current.map(|t| t.done), Some(0));
        transfers.entered(Abi::X86_64, 39, &[0; 6]);
        transfers.entered(Abi::X86_64, WRITE, &[3, 0x1000 + 40, 60, 0, 0, 0]);
        assert_eq!(transfers.current.map(|t| (t.done, t.len)), Some((40, 100)));
        assert!(transfers.rest.is_none());
    }

    #[test]
    fn only_calls_that_transfer_all_are_gone_on_with() {
        let is = |number, args| Transfer::of_call(Abi::X86_64, number, &args).is_some();
        assert!(is(WRITE, [1, 0x1000, 99, 7, 7, 7]));
        assert!(is(SENDTO, [1, 0x1000, 99, 0, 0, 0]));
        assert!(is(SENDTO, [1, 0x1000, 99, MSG_NOSIGNAL, 0, 0]));
        assert!(!is(SENDTO, [1, 0x1000, 99, 0x40, 0, 0]), "MSG_DONTWAIT");
        assert!(is(RECVFROM, [1, 0x1000, 99, MSG_WAITALL, 0, 0]));
        assert!(!is(RECVFROM, [1, 0x1000, 99, 0, 0, 0]));
        assert!(!is(0, [1, 0x1000, 99, 0, 0, 0]), "read gives what there is");
        assert!(Transfer::of_call(Abi::I386, WRITE, &[0; 6]).is_none());
    }
}
