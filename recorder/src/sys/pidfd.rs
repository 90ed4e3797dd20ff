//! A process by descriptor: the descriptor means the same process when its pid is given to another.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use maptrail_tracelog::types::Pid;

/// A descriptor for process `pid`; it can be read once the process has ended.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes integers, and returns a new descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid.0 as libc::pid_t, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}
