//! Calls that are broken off by being traced: what may be broken off, and how it is made good.
//!
//! To stop a thread for its tracer the kernel wakes it, and the call that it slept in is broken off.
//! Most calls start again by themselves when no handler was run. Some return EINTR instead, whatever
//! came (signal(7)): to these the tracer gives the result that makes the kernel start them again (a
//! relative timeout begins anew then). Transfers that were under way return how far they came, and
//! nobody can make that good: so nobody interrupts a thread in one.
//!
//! Signals that the program ignores are the same case: the kernel does not even wake a thread for them,
//! unless the thread is traced. Where a tracer sees the exits of all calls it undoes every interruption
//! there: another thread may take the signal, and then no stop for it follows. (A stop by job control
//! breaks calls off in an untraced program, too: that is put back.)

use maptrail_tracelog::calls::{Abi, X32_BIT};
use maptrail_tracelog::types::Tid;

use crate::proc;
use crate::sys::ptrace::{StopError, Stopped};

/// The kernel's own result for "start again unless a handler runs, else EINTR".
const ERESTARTNOHAND: i64 = 514;
/// Length of the instructions `syscall`, `sysenter` and `int 0x80`.
pub const SYSCALL: u64 = 2;
/// Ignored by default: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
pub const IGNORED_BY_DEFAULT: [i32; 4] =
    [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];

/// Calls that return EINTR only as long as nothing has come of them: `read`, `write`, `readv`,
/// `writev` (of sockets with a timeout, inotify), `accept`, `accept4`, `recvfrom`, `recvmsg`,
/// `recvmmsg`, `sendto`, `sendmsg`, `sendmmsg`, `semop`, `semtimedop`, `rt_sigtimedwait`,
/// `epoll_wait`, `epoll_pwait`, `epoll_pwait2`, `io_getevents`, `io_pgetevents`, `io_uring_enter`, and,
/// where the time that is left cannot be written, `select`, `pselect6`, `ppoll`.
const X86_64: [u64; 24] = [
    0, 1, 19, 20, 43, 288, 45, 47, 299, 44, 46, 307, 65, 220, 128, 232, 281, 441, 208, 333, 426,
    23, 270, 271,
];
/// The same for i386 (there is no `accept`, and two of each that has a `time64` form).
const I386: [u64; 27] = [
    3, 4, 145, 146, 364, 371, 372, 337, 417, 369, 370, 345, 420, 177, 421, 256, 319, 441, 247, 385,
    416, 426, 142, 308, 413, 309, 414,
];

/// `rt_sigtimedwait` on x86-64 and i386 (the old one and the `time64` form).
const SIGTIMEDWAIT: [u64; 3] = [128, 177, 421];

/// Before `signal` is delivered: if the program ignores it, the call that it broke off goes on.
pub fn undo_if_ignored(stopped: &Stopped, signal: i32) -> Result<(), StopError> {
    // The cheap question first: a call that was not broken off is the rule.
    if was_broken_off(&stopped.regs()?) && proc::ignores(stopped.tid(), signal, &IGNORED_BY_DEFAULT)
    {
        undo(stopped)?;
    }
    Ok(())
}

/// In a stop for an interrupt or a signal: a call that was broken off goes on. (Where a handler is about
/// to run, the kernel itself makes EINTR of it.)
pub fn undo(stopped: &Stopped) -> Result<(), StopError> {
    let mut regs = stopped.regs()?;
    if starts_again(stopped, &regs)? {
        regs.rax = (-ERESTARTNOHAND).cast_unsigned();
        stopped.set_regs(&regs)?;
    }
    Ok(())
}

/// At the exit of a call that was broken off: it goes on, as after [`undo`]. Gives the place of the thread
/// if so.
pub fn undo_at_exit(stopped: &Stopped) -> Result<Option<u64>, StopError> {
    let mut regs = stopped.regs()?;
    if !starts_again(stopped, &regs)? || is_an_answer(stopped.tid(), &regs) {
        return Ok(None);
    }
    if SIGTIMEDWAIT.contains(&regs.orig_rax) {
        // It takes the mark away that a signal has come, and without that the kernel does not look at the
        // result any more. So it is made again by us, unless a handler is about to run.
        if proc::awaits_signal(stopped.tid(), &IGNORED_BY_DEFAULT) {
            return Ok(None);
        }
        regs.rip = regs.rip.wrapping_sub(SYSCALL);
        regs.rax = std::mem::replace(&mut regs.orig_rax, u64::MAX);
    } else {
        regs.rax = (-ERESTARTNOHAND).cast_unsigned();
    }
    stopped.set_regs(&regs)?;
    Ok(Some(regs.rip))
}

/// Whether the EINTR of a read or a write may come from whoever serves the file (a file system in user
/// space, a driver), without any signal.
fn is_an_answer(tid: Tid, regs: &libc::user_regs_struct) -> bool {
    let fd = match regs.orig_rax {
        0 | 1 | 19 | 20 => regs.rdi,
        3 | 4 | 145 | 146 => regs.rbx,
        _ => return false,
    };
    let file = proc::descriptor(tid, fd);
    !file.starts_with("socket:") && !file.starts_with("anon_inode:")
}

/// The call that [`undo_at_exit`] lets go on at `rip` is broken off after all, by job control.
pub fn redo(stopped: &Stopped, rip: u64) -> Result<(), StopError> {
    let mut regs = stopped.regs()?;
    if regs.rip != rip {
        return Ok(());
    }
    if regs.rax.cast_signed() != -ERESTARTNOHAND {
        regs.rip = rip.wrapping_add(SYSCALL);
    }
    regs.rax = (-i64::from(libc::EINTR)).cast_unsigned();
    stopped.set_regs(&regs)
}

/// Whether a thread's call was broken off, and is one that returns EINTR for that.
fn starts_again(stopped: &Stopped, regs: &libc::user_regs_struct) -> Result<bool, StopError> {
    if !was_broken_off(regs) {
        return Ok(false);
    }
    Ok(match stopped.syscall_info()?.abi {
        Some(Abi::I386) => I386.contains(&regs.orig_rax),
        _ => X86_64.contains(&(regs.orig_rax & !u64::from(X32_BIT))),
    })
}

fn was_broken_off(regs: &libc::user_regs_struct) -> bool {
    regs.rax.cast_signed() == -i64::from(libc::EINTR)
}

/// What an interrupt does to a thread that sleeps in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// None: the call starts again, or cannot be woken and is broken off by nothing.
    None,
    /// It returns EINTR, which [`undo`] makes good.
    Undone,
    /// It may come back with less than was asked for, or nobody knows.
    Perhaps,
}

/// What a sleeping call is, as far as its harm goes.
#[derive(Clone, Copy)]
enum Kind {
    Harmless,
    /// Returns EINTR.
    Undone,
    /// By what its descriptor (the first argument) is.
    ByFile,
    /// Unless argument so-and-so has MSG_WAITALL.
    UnlessWaitAll(usize),
    /// If argument so-and-so is 0.
    IfZero(usize),
}

const MSG_WAITALL: u64 = 0x100;

/// Calls by their x86-64 numbers. What is not here is left alone: transfers (`write`, `send`,
/// `sendfile`, `splice`, ...), device calls (`ioctl`), files of a file system in user space, whose
/// server is told of the interruption.
const CALLS: &[(u64, Kind)] = &[
    (0, Kind::ByFile),            // read
    (7, Kind::Harmless),          // poll
    (19, Kind::ByFile),           // readv
    (23, Kind::Undone),           // select
    (34, Kind::Harmless),         // pause
    (35, Kind::Harmless),         // nanosleep
    (43, Kind::Undone),           // accept
    (45, Kind::UnlessWaitAll(3)), // recvfrom
    (47, Kind::UnlessWaitAll(2)), // recvmsg
    (61, Kind::Harmless),         // wait4
    (65, Kind::Undone),           // semop
    (70, Kind::Harmless),         // msgrcv
    (73, Kind::Harmless),         // flock
    (128, Kind::Undone),          // rt_sigtimedwait
    (130, Kind::Harmless),        // rt_sigsuspend
    (202, Kind::Harmless),        // futex
    (208, Kind::Undone),          // io_getevents
    (219, Kind::Harmless),        // restart_syscall
    (220, Kind::Undone),          // semtimedop
    (230, Kind::Harmless),        // clock_nanosleep
    (232, Kind::Undone),          // epoll_wait
    (243, Kind::Harmless),        // mq_timedreceive
    (247, Kind::Harmless),        // waitid
    (270, Kind::Undone),          // pselect6
    (271, Kind::Undone),          // ppoll
    (281, Kind::Undone),          // epoll_pwait
    (288, Kind::Undone),          // accept4
    (333, Kind::Undone),          // io_pgetevents
    (426, Kind::IfZero(1)),       // io_uring_enter that submits nothing
    (441, Kind::Undone),          // epoll_pwait2
    (449, Kind::Harmless),        // futex_waitv
    // Not woken by an interrupt at all: it takes effect when they are over.
    (9, Kind::Harmless),   // mmap
    (10, Kind::Harmless),  // mprotect
    (11, Kind::Harmless),  // munmap
    (12, Kind::Harmless),  // brk
    (25, Kind::Harmless),  // mremap
    (28, Kind::Harmless),  // madvise
    (56, Kind::Harmless),  // clone
    (57, Kind::Harmless),  // fork
    (58, Kind::Harmless),  // vfork
    (435, Kind::Harmless), // clone3
];

/// Calls in which a thread that makes processes sleeps: `clone`, `fork`, `vfork`, `wait4`, `waitid`,
/// `clone3`.
pub const MAKERS: [u64; 6] = [56, 57, 58, 61, 247, 435];

/// What an interrupt would do to a thread that sleeps in call `number`. `file` names what a descriptor
/// of the thread refers to, as the link in `/proc/PID/fd` does.
pub fn harm(number: u64, args: &[u64; 6], file: impl FnOnce(u64) -> String) -> Harm {
    let Some((_, kind)) = CALLS
        .iter()
        .find(|(n, _)| *n == number & !u64::from(X32_BIT))
    else {
        return Harm::Perhaps;
    };
    match *kind {
        Kind::Harmless => Harm::None,
        Kind::Undone => Harm::Undone,
        Kind::UnlessWaitAll(flags) => match args.get(flags) {
            Some(flags) if flags & MSG_WAITALL == 0 => Harm::Undone,
            _ => Harm::Perhaps,
        },
        Kind::IfZero(which) => match args.get(which) {
            Some(0) => Harm::Undone,
            _ => Harm::Perhaps,
        },
        // What gives whatever there is, as soon as there is some. A read that sleeps has none yet.
        Kind::ByFile => {
            let name = file(args[0]);
            // No serial lines: some wait for more than one byte.
            let gives_what_there_is = ["pipe:", "socket:", "anon_inode:", "/dev/pts/"];
            let mut kinds = gives_what_there_is.iter();
            match name == "/dev/tty" || kinds.any(|kind| name.starts_with(kind)) {
                true => Harm::Undone,
                false => Harm::Perhaps,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_are_left_alone_and_waits_are_not() {
        let harm_of = |number, args, file: &str| harm(number, &args, |_| file.into());
        assert_eq!(harm_of(1, [3; 6], "pipe:[7]"), Harm::Perhaps, "write");
        assert_eq!(harm_of(16, [3; 6], "/dev/nvidia0"), Harm::Perhaps, "ioctl");
        assert_eq!(harm_of(0, [3; 6], "pipe:[7]"), Harm::Undone);
        assert_eq!(harm_of(0, [3; 6], "/mnt/fuse/file"), Harm::Perhaps);
        assert_eq!(harm_of(45, [0; 6], ""), Harm::Undone);
        assert_eq!(harm_of(45, [0, 0, 0, 0x100, 0, 0], ""), Harm::Perhaps);
        assert_eq!(harm_of(232, [0; 6], ""), Harm::Undone);
        assert_eq!(harm_of(202, [0; 6], ""), Harm::None);
    }

    #[test]
    fn what_is_interrupted_with_harm_undone_is_made_good() {
        for (number, kind) in CALLS {
            let harmless = matches!(kind, Kind::Harmless);
            assert!(harmless || X86_64.contains(number), "{number}");
        }
    }
}
