//! Takes the next stop or death of a traced thread.
//!
//! Stops are *peeked* (`WNOWAIT`), not taken: a tracer that is killed between a taking wait and the
//! resume loses the signal that was being delivered. Resuming the thread clears its stop. A stop that
//! carries no signal may be taken, which is how several can be collected at once; and so may any stop
//! of a target that dies with its tracer.

use std::io;
use std::mem::MaybeUninit;

use libc::{c_int, pid_t};
use maptrail_tracelog::types::Tid;

use super::ptrace::Stopped;

/// Set in the wait status of a process that left a core file.
const CORE_DUMPED: c_int = 0x80;

/// What a thread stopped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the entry into, or exit from, a system call.
    Syscall,
    /// A seccomp filter asked for a look, before the call.
    Seccomp,
    /// It made a thread or a process, which is traced as well.
    Child,
    /// It runs another program now.
    Exec,
    /// It is about to exit; its memory is still there.
    Exit,
    /// This signal is about to be delivered: it must be handed on when the thread is resumed.
    Signal(i32),
    /// Job control stopped its whole process.
    Group,
    /// Its first stop after birth, the end of a group-stop, or an interrupt.
    Trap,
    /// Any other ptrace event.
    Other,
}

/// The next thing that happened.
#[derive(Debug)]
pub enum Event {
    /// A thread stopped; somebody must resume it.
    Stopped(Stopped, Stop),
    /// A thread is dead and reaped, with this wait status.
    Ended(Tid, i32),
    /// A signal came to this process; nothing is known of the threads.
    Interrupted,
    /// Nothing right now (only when asked not to block).
    Nothing,
    /// No threads are left.
    NoneLeft,
}

/// Whether a stop stays on the kernel's list until its thread is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stops {
    /// It does, and is shown again until then.
    Peeked,
    /// It does not.
    Taken,
}

/// The next event of any traced thread; waits for one if `block`. A death is always taken.
pub fn next(block: bool, stops: Stops) -> io::Result<Event> {
    wait(libc::P_ALL, 0, block, stops)
}

/// The stop of one thread, or its death, if there is one now.
pub fn now(tid: Tid, stops: Stops) -> io::Result<Event> {
    wait(libc::P_PID, tid.0, false, stops)
}

fn wait(whom: libc::idtype_t, id: u32, block: bool, stops: Stops) -> io::Result<Event> {
    let mut flags = libc::WEXITED | libc::WSTOPPED | libc::__WALL;
    if !block {
        flags |= libc::WNOHANG;
    }
    if stops == Stops::Peeked {
        flags |= libc::WNOWAIT;
    }
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: waitid writes one siginfo_t.
    let answer = unsafe { libc::waitid(whom, id, info.as_mut_ptr(), flags) };
    if answer < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EINTR) => Ok(Event::Interrupted),
            Some(libc::ECHILD) => Ok(Event::NoneLeft),
            _ => Err(error),
        };
    }
    // SAFETY: zeroed above and filled by waitid, whose answer has the pid and status fields.
    let (pid, code, status) = unsafe {
        let info = info.assume_init();
        (info.si_pid(), info.si_code, info.si_status())
    };
    if pid == 0 {
        return Ok(Event::Nothing);
    }
    let tid = Tid(pid as u32);
    match code {
        libc::CLD_EXITED if stops == Stops::Taken => Ok(Event::Ended(tid, (status & 0xff) << 8)),
        libc::CLD_KILLED if stops == Stops::Taken => Ok(Event::Ended(tid, status)),
        libc::CLD_DUMPED if stops == Stops::Taken => Ok(Event::Ended(tid, status | CORE_DUMPED)),
        libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => match reap(pid) {
            Ok(status) => Ok(Event::Ended(tid, status)),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(Event::Interrupted),
            Err(error) => Err(error),
        },
        _ => Ok(Event::Stopped(Stopped::new(tid), decode(status))),
    }
}

/// Takes a peeked stop off the list, so that it is not shown again while the thread is held. Not for
/// signal stops (see the module's head), nor for a death. Returns what was taken: SIGKILL may have woken the
/// thread, which then stands at its exit, or (`None`) nowhere yet.
pub fn take(stopped: &Stopped) -> Option<Stop> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
    // SAFETY: waitid writes one siginfo_t, which zeroes make a valid one.
    let (answer, info) = unsafe {
        let answer = libc::waitid(libc::P_PID, stopped.tid().0, info.as_mut_ptr(), flags);
        (answer, info.assume_init())
    };
    // SAFETY: an answer of waitid has these fields, and so has one that tells of nobody, as zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    (answer == 0 && pid != 0).then(|| decode(status))
}

fn reap(pid: pid_t) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
}

/// Reads the `si_status` of a ptrace stop: the signal below, the event above (ptrace(2)).
fn decode(status: c_int) -> Stop {
    let signal = status & 0xff;
    match status >> 8 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_SECCOMP => Stop::Seccomp,
        libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
            Stop::Child
        }
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_EXIT => Stop::Exit,
        libc::PTRACE_EVENT_STOP => match signal {
            libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Stop::Group,
            _ => Stop::Trap,
        },
        _ => Stop::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_stop_is_told_apart() {
        assert_eq!(decode(libc::SIGTRAP | 0x80), Stop::Syscall);
        assert_eq!(decode(libc::SIGTRAP), Stop::Signal(libc::SIGTRAP));
        assert_eq!(decode(64), Stop::Signal(64));
        assert_eq!(decode(libc::SIGTRAP | 7 << 8), Stop::Seccomp);
        assert_eq!(decode(libc::SIGSTOP | 128 << 8), Stop::Group);
        assert_eq!(decode(libc::SIGTRAP | 128 << 8), Stop::Trap);
        assert_eq!(decode(libc::SIGTRAP | 6 << 8), Stop::Exit);
    }
}
