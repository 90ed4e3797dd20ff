//! Being asked to end: SIGTERM, SIGINT and SIGHUP, and the death of the process that started this one;
//! and being continued after a stop.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(signal: libc::c_int) {
    let flag = match signal {
        libc::SIGCONT => &STOPPED,
        _ => &ASKED,
    };
    flag.store(true, Ordering::Relaxed);
}

/// From now on these signals end nothing by themselves: they interrupt a blocking call of this thread's
/// process, and [`asked`] is true.
pub fn listen() {
    // SAFETY: an all-zero sigaction is valid; the handler stores one flag. prctl takes integers.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = on_signal as *const () as usize;
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCONT] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
    }
}

/// Whether somebody asked.
#[must_use]
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Whether this process stood still, and was continued, since that was last asked.
pub fn stood_still() -> bool {
    STOPPED.load(Ordering::Relaxed) && STOPPED.swap(false, Ordering::Relaxed)
}
