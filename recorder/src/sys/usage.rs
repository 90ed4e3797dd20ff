//! What this process took of the machine.

use std::mem::MaybeUninit;

/// Most memory in RAM at once, bytes, and CPU time, nanoseconds (getrusage(2)).
#[must_use]
pub fn of_this_process() -> (u64, u64) {
    // SAFETY: all-zero is a valid rusage, and getrusage writes one; it fails for no valid argument.
    let usage = unsafe {
        let mut usage = MaybeUninit::<libc::rusage>::zeroed().assume_init();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let ns = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1000;
    let cpu_ns = ns(usage.ru_utime) + ns(usage.ru_stime);
    (usage.ru_maxrss as u64 * 1024, cpu_ns)
}
