//! PTRACE_SEIZE, which must not wait for long.
//!
//! While a thread of the target is in exec, the kernel lets nobody seize another one
//! (`cred_guard_mutex`). The exec in turn waits for the death of all other threads, and if some of those
//! are traced their last stops are the tracer's to serve: neither would ever go on. A signal does end the
//! wait, but when its handler is done the kernel repeats the request by itself (ERESTARTNOINTR). So the
//! handler of the tick steps over it.

use std::arch::asm;
use std::ffi::c_void;
use std::io;
use std::sync::atomic::{AtomicI64, Ordering};

use libc::{REG_RAX, REG_RIP};
use maptrail_tracelog::types::Tid;

/// Length of the `syscall` instruction.
const SYSCALL: i64 = 2;

/// Where the request is made; 0 when none is under way.
static PLACE: AtomicI64 = AtomicI64::new(0);

/// Makes the request, with ptrace's options.
///
/// # Errors
/// The kernel's; EINTR if it could not be done before the next tick, or was about to be made then.
pub fn seize(tid: Tid, options: i32) -> io::Result<()> {
    let answer: i64;
    // SAFETY: the call reads its registers only; `syscall` changes rax, rcx and r11.
    unsafe {
        asm!(
            "lea {at}, [rip + 2f]",
            "mov qword ptr [{place}], {at}",
            "2:",
            "syscall",
            at = out(reg) _,
            place = in(reg) PLACE.as_ptr(),
            inlateout("rax") libc::SYS_ptrace => answer,
            in("rdi") u64::from(libc::PTRACE_SEIZE),
            in("rsi") u64::from(tid.0),
            in("rdx") 0_u64,
            in("r10") i64::from(options),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    PLACE.store(0, Ordering::Relaxed);
    match answer {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error as i32)),
    }
}

/// For a signal's handler: a request that is under way, or about to be made, is given up.
///
/// # Safety
/// `context` is the third argument that the kernel gave to the handler.
pub unsafe fn give_up(context: *mut c_void) {
    // SAFETY: it is what its caller says.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = PLACE.load(Ordering::Relaxed);
    if let [rip, rax] = [REG_RIP, REG_RAX].map(|register| register as usize)
        && at != 0
        && registers[rip] == at
    {
        registers[rip] += SYSCALL;
        registers[rax] = -i64::from(libc::EINTR);
    }
}
