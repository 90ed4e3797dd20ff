//! A stopped thread as a value: what may be asked of it, and how it is let go.
//!
//! [`super::wait`] makes a [`Stopped`], and resuming consumes it, so the rest of the recorder neither
//! touches a running thread nor resumes one twice. ([`Stopped::perhaps`] is for when that was lost.)

use std::io;
use std::mem::{MaybeUninit, size_of};

use libc::{c_long, c_uint, c_void, pid_t};
use maptrail_tracelog::calls::{Abi, X32_BIT};
use maptrail_tracelog::types::{Addr, Tid};

use super::seize;

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386` of linux/audit.h.
pub const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Linux 5.13; ptrace(2).
const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;

/// Why a request to a stopped thread had no effect.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It was killed meanwhile: its exit is about to be reported. Not a failure.
    #[error("thread {0} is gone")]
    Gone(Tid),
    /// The kernel refused.
    #[error("{request} on thread {tid}: {source}")]
    Refused {
        /// The ptrace request.
        request: &'static str,
        /// The thread.
        tid: Tid,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Result of a request to a stopped thread.
pub type Result<T> = std::result::Result<T, StopError>;

/// How far a thread runs after it is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// To the next event or signal.
    Run,
    /// The same, but it stops also at the next entry into, or exit from, a system call.
    ToSyscall,
}

/// Where in a system call a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Before the call.
    Entry {
        /// Its number, as in `orig_rax`.
        number: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// After the call, with its raw result.
    Exit(i64),
    /// In no call.
    None,
}

/// The kernel's description of a system-call stop.
#[derive(Clone, Copy, Debug)]
pub struct SyscallInfo {
    /// Through which entry into the kernel; `None` for one that this program does not know.
    pub abi: Option<Abi>,
    /// Where it stands.
    pub position: Position,
    /// What the seccomp filter that stopped it gave as data.
    pub filter_data: Option<u32>,
    /// Its instruction pointer.
    pub rip: u64,
    /// Its stack pointer.
    pub rsp: u64,
}

/// A thread in a ptrace stop, not yet resumed.
#[derive(Debug)]
pub struct Stopped {
    tid: Tid,
}

impl Stopped {
    pub(super) fn new(tid: Tid) -> Stopped {
        Stopped { tid }
    }

    /// A thread that may be stopped, when all knowledge was lost: requests are refused if it is not.
    #[must_use]
    pub fn perhaps(tid: Tid) -> Stopped {
        Stopped { tid }
    }

    /// Which thread.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// What call it is at, by `PTRACE_GET_SYSCALL_INFO` (Linux 5.3).
    pub fn syscall_info(&self) -> Result<SyscallInfo> {
        let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
        // SAFETY: the kernel writes at most the size that is passed as the address argument.
        let info = unsafe {
            request(
                libc::PTRACE_GET_SYSCALL_INFO,
                "PTRACE_GET_SYSCALL_INFO",
                self.tid,
                size_of::<libc::ptrace_syscall_info>(),
                info.as_mut_ptr().cast(),
            )?;
            info.assume_init()
        };
        let entry = |number: u64, args: [u64; 6]| Position::Entry { number, args };
        // SAFETY: `op` says which member of the union the kernel filled in; all are plain integers.
        let position = unsafe {
            match info.op {
                libc::PTRACE_SYSCALL_INFO_ENTRY => entry(info.u.entry.nr, info.u.entry.args),
                libc::PTRACE_SYSCALL_INFO_SECCOMP => entry(info.u.seccomp.nr, info.u.seccomp.args),
                libc::PTRACE_SYSCALL_INFO_EXIT => Position::Exit(info.u.exit.sval),
                _ => Position::None,
            }
        };
        let filter_data = match info.op {
            // SAFETY: as above.
            libc::PTRACE_SYSCALL_INFO_SECCOMP => Some(unsafe { info.u.seccomp.ret_data }),
            _ => None,
        };
        let abi = match (info.arch, position) {
            (AUDIT_ARCH_X86_64, Position::Entry { number, .. })
                if number & u64::from(X32_BIT) != 0 =>
            {
                Some(Abi::X32)
            }
            (AUDIT_ARCH_X86_64, _) => Some(Abi::X86_64),
            (AUDIT_ARCH_I386, _) => Some(Abi::I386),
            _ => None,
        };
        Ok(SyscallInfo {
            abi,
            position,
            filter_data,
            rip: info.instruction_pointer,
            rsp: info.stack_pointer,
        })
    }

    /// Its general registers.
    pub fn regs(&self) -> Result<libc::user_regs_struct> {
        let mut regs = MaybeUninit::<libc::user_regs_struct>::zeroed();
        // SAFETY: PTRACE_GETREGS fills exactly one user_regs_struct; all its fields are integers.
        unsafe {
            request(
                libc::PTRACE_GETREGS,
                "PTRACE_GETREGS",
                self.tid,
                0,
                regs.as_mut_ptr().cast(),
            )?;
            Ok(regs.assume_init())
        }
    }

    /// Sets its general registers.
    pub fn set_regs(&self, regs: &libc::user_regs_struct) -> Result<()> {
        let regs = std::ptr::from_ref(regs).cast_mut().cast();
        // SAFETY: PTRACE_SETREGS only reads the struct.
        unsafe { request(libc::PTRACE_SETREGS, "PTRACE_SETREGS", self.tid, 0, regs) }
    }

    /// Sets the register of a call's first argument.
    pub fn set_first_argument(&self, abi: Abi, value: u64) -> Result<()> {
        let mut regs = self.regs()?;
        match abi {
            Abi::X86_64 | Abi::X32 => regs.rdi = value,
            Abi::I386 => regs.rbx = value,
        }
        self.set_regs(&regs)
    }

    /// Gives the call that it is about to make an answer instead: the kernel does not make it.
    pub fn answer(&self, result: i64) -> Result<()> {
        let mut regs = self.regs()?;
        // No call has this number.
        regs.orig_rax = u64::MAX;
        regs.rax = result.cast_unsigned();
        self.set_regs(&regs)
    }

    /// Writes one word of its memory.
    pub fn poke(&self, addr: u64, word: u64) -> Result<()> {
        // SAFETY: the data argument is a value here, not a pointer; the address is the target's.
        unsafe {
            request(
                libc::PTRACE_POKEDATA,
                "PTRACE_POKEDATA",
                self.tid,
                addr as usize,
                word as *mut c_void,
            )
        }
    }

    /// Whether it stands at the ptrace event that it was reported for, and was not killed and came to
    /// its exit meanwhile.
    pub fn still_at_event(&self) -> Result<bool> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: PTRACE_GETSIGINFO writes one siginfo_t; all its fields are integers.
        let info = unsafe {
            request(
                libc::PTRACE_GETSIGINFO,
                "PTRACE_GETSIGINFO",
                self.tid,
                0,
                info.as_mut_ptr().cast(),
            )?;
            info.assume_init()
        };
        Ok(info.si_code >> 8 != libc::PTRACE_EVENT_EXIT)
    }

    /// The message of the event that it stopped for (a new thread's id, a former id, a status).
    pub fn event_message(&self) -> Result<u64> {
        let mut message = 0u64;
        // SAFETY: PTRACE_GETEVENTMSG writes one unsigned long.
        unsafe {
            request(
                libc::PTRACE_GETEVENTMSG,
                "PTRACE_GETEVENTMSG",
                self.tid,
                0,
                (&raw mut message).cast(),
            )?;
        }
        Ok(message)
    }

    /// Where its rseq area is (rseq(2)), if it has registered one. Linux 5.13.
    #[must_use]
    pub fn rseq_area(&self) -> Option<Addr> {
        // struct ptrace_rseq_configuration: the pointer comes first.
        let mut answer = [0u64; 3];
        // SAFETY: the kernel writes at most the size that is passed as the address argument.
        unsafe {
            request(
                PTRACE_GET_RSEQ_CONFIGURATION,
                "PTRACE_GET_RSEQ_CONFIGURATION",
                self.tid,
                size_of_val(&answer),
                answer.as_mut_ptr().cast(),
            )
            .ok()?;
        }
        answer.first().filter(|at| **at != 0).map(|at| Addr(*at))
    }

    /// Lets it run, with `signal` (0 for none). The kernel keeps the siginfo of the signal that it
    /// stopped for.
    pub fn resume(self, how: Resume, signal: i32) -> Result<()> {
        let (op, name) = match how {
            Resume::Run => (libc::PTRACE_CONT, "PTRACE_CONT"),
            Resume::ToSyscall => (libc::PTRACE_SYSCALL, "PTRACE_SYSCALL"),
        };
        // SAFETY: the data argument is a signal number, a raw one: real-time signals pass too.
        unsafe { request(op, name, self.tid, 0, signal as usize as *mut c_void) }
    }

    /// Leaves it in its group-stop, until SIGCONT.
    pub fn listen(self) -> Result<()> {
        // SAFETY: PTRACE_LISTEN takes no pointers.
        unsafe {
            request(
                libc::PTRACE_LISTEN,
                "PTRACE_LISTEN",
                self.tid,
                0,
                std::ptr::null_mut(),
            )
        }
    }

    /// Lets it go for good, with `signal` (0 for none).
    pub fn detach(self, signal: i32) -> Result<()> {
        // SAFETY: the data argument is a signal number.
        unsafe {
            request(
                libc::PTRACE_DETACH,
                "PTRACE_DETACH",
                self.tid,
                0,
                signal as usize as *mut c_void,
            )
        }
    }
}

/// How a thread is traced.
#[derive(Clone, Copy, Debug)]
pub struct Tracing {
    /// Its seccomp filter stops it for us. (Without this the kernel itself refuses what a filter of
    /// the program's own wants to have traced, as it does without a tracer.)
    pub filtered: bool,
    /// The kernel kills it when this process ends.
    pub dies_with_us: bool,
    /// The processes that it makes are traced from their birth; threads always are.
    pub forks: bool,
}

/// Becomes the tracer of `tid` without stopping it. Its threads, execs and exits are reported. EINTR if
/// that is not possible at this moment.
pub fn seize(tid: Tid, how: Tracing) -> io::Result<()> {
    let mut options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEEXIT;
    if how.forks {
        options |= libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
    }
    if how.filtered {
        options |= libc::PTRACE_O_TRACESECCOMP;
    }
    if how.dies_with_us {
        options |= libc::PTRACE_O_EXITKILL;
    }
    seize::seize(tid, options)
}

/// Makes a thread stop soon: at once if it runs or sleeps, and when it wakes if its sleep cannot be
/// interrupted. What it is blocked in is broken off.
pub fn interrupt(tid: Tid) -> io::Result<()> {
    // SAFETY: the request has no arguments.
    let answer = unsafe {
        libc::ptrace(
            libc::PTRACE_INTERRUPT,
            tid.0 as pid_t,
            std::ptr::null_mut::<c_void>(),
            std::ptr::null_mut::<c_void>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether two threads share one address space. `None` where the kernel cannot tell (no kcmp).
#[must_use]
pub fn same_space(a: Tid, b: Tid) -> Option<bool> {
    const KCMP_VM: c_long = 1;
    // SAFETY: kcmp takes integers only.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            a.0 as c_long,
            b.0 as c_long,
            KCMP_VM,
            0 as c_long,
            0 as c_long,
        )
    };
    (answer >= 0).then_some(answer == 0)
}

/// One ptrace request to a stopped thread.
///
/// # Safety
/// `data` must be what the request wants: a pointer to memory of the right size and kind, or a value.
unsafe fn request(
    op: c_uint,
    name: &'static str,
    tid: Tid,
    addr: usize,
    data: *mut c_void,
) -> Result<()> {
    // SAFETY: the caller vouches for `data`; `addr` is an integer to all requests used here.
    let answer = unsafe { libc::ptrace(op, tid.0 as pid_t, addr as *mut c_void, data) };
    if answer >= 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    Err(match source.raw_os_error() {
        Some(libc::ESRCH) => StopError::Gone(tid),
        _ => StopError::Refused {
            request: name,
            tid,
            source,
        },
    })
}
