//! What this process was given at its start, before Rust's runtime changed it.
//!
//! The runtime ignores SIGPIPE and opens `/dev/null` on standard descriptors that are closed. The
//! recorded program must be given what we were given, so it is noted down before `main`.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

static SIGPIPE_IGNORED: AtomicBool = AtomicBool::new(false);
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Whether SIGPIPE was ignored when this process started.
#[must_use]
pub fn sigpipe_was_ignored() -> bool {
    SIGPIPE_IGNORED.load(Ordering::Relaxed)
}

/// Whether standard descriptor `fd` (0 to 2) was closed when this process started.
#[must_use]
pub fn was_closed(fd: i32) -> bool {
    usize::try_from(fd)
        .ok()
        .and_then(|fd| CLOSED.get(fd))
        .is_some_and(|c| c.load(Ordering::Relaxed))
}

extern "C" fn note_down() {
    // SAFETY: runs before main, on the only thread; sigaction and fcntl only ask.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        if libc::sigaction(libc::SIGPIPE, ptr::null(), &raw mut action) == 0 {
            SIGPIPE_IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
        }
        for (fd, closed) in (0..).zip(&CLOSED) {
            closed.store(libc::fcntl(fd, libc::F_GETFD) < 0, Ordering::Relaxed);
        }
    }
}

// SAFETY: the loader calls every pointer of .init_array once before main; `note_down` needs nothing
// that the runtime has not set up by then (libc is).
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = note_down;
