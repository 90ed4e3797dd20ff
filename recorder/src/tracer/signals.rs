//! Signals that a program ignores.
//!
//! The kernel does not even wake a thread for such a signal, unless the thread is traced: then its
//! call is broken off, the tracer is asked, and only then is the signal thrown away. Most calls start
//! again by themselves when no handler was run. Some return EINTR instead, whatever came (signal(7)):
//! to these the tracer gives the result that makes the kernel start them again. A relative timeout
//! begins anew then. (A stop by job control breaks such calls off in an untraced program, too, and the
//! SIGCONT after it is no reason to undo that.)

use maptrail_tracelog::calls::{Abi, X32_BIT};

use crate::proc;
use crate::sys::ptrace::{StopError, Stopped};

/// The kernel's own result for "start again unless a handler runs, else EINTR".
const ERESTARTNOHAND: i64 = 514;
/// Ignored by default: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
const IGNORED_BY_DEFAULT: [i32; 4] = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];

/// Calls that return EINTR only as long as nothing has come of them: `read`, `write`, `readv`,
/// `writev` (of sockets with a timeout, inotify), `accept`, `accept4`, `recvfrom`, `recvmsg`,
/// `recvmmsg`, `sendto`, `sendmsg`, `sendmmsg`, `semop`, `semtimedop`, `rt_sigtimedwait`,
/// `epoll_wait`, `epoll_pwait`, `epoll_pwait2`, `io_getevents`, `io_pgetevents`, `io_uring_enter`.
const X86_64: [u64; 21] = [
    0, 1, 19, 20, 43, 288, 45, 47, 299, 44, 46, 307, 65, 220, 128, 232, 281, 441, 208, 333, 426,
];
/// The same for i386 (there is no `accept`, and two of each that has a `time64` form).
const I386: [u64; 22] = [
    3, 4, 145, 146, 364, 371, 372, 337, 417, 369, 370, 345, 420, 177, 421, 256, 319, 441, 247, 385,
    416, 426,
];

/// Before `signal` is delivered: if the program ignores it, the call that it broke off goes on.
pub fn undo_interruption(stopped: &Stopped, signal: i32) -> Result<(), StopError> {
    let mut regs = stopped.regs()?;
    let interrupted = regs.rax.cast_signed() == -i64::from(libc::EINTR);
    if !interrupted || !proc::ignores(stopped.tid(), signal, &IGNORED_BY_DEFAULT) {
        return Ok(());
    }
    let restarts = match stopped.syscall_info()?.abi {
        Some(Abi::I386) => I386.contains(&regs.orig_rax),
        _ => X86_64.contains(&(regs.orig_rax & !u64::from(X32_BIT))),
    };
    if restarts {
        regs.rax = (-ERESTARTNOHAND).cast_unsigned();
        stopped.set_regs(&regs)?;
    }
    Ok(())
}
