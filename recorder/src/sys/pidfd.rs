//! A process by descriptor: the descriptor means the same process when its pid is given to another.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use maptrail_tracelog::types::Pid;
use nix::sys::socket::{SockType, getsockopt, sockopt};

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

/// Whether descriptor `fd` of process `pid` is a stream socket whose transfers have no time limit.
/// False where the kernel cannot tell (pidfd_getfd(2) came with Linux 5.6).
#[must_use]
pub fn is_patient_stream(pid: Pid, fd: u64) -> bool {
    let Ok(process) = open(pid) else { return false };
    // SAFETY: pidfd_getfd takes integers, and returns a new descriptor that nobody else owns.
    let socket = unsafe {
        let raw = libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_raw_fd(),
            fd as libc::c_int,
            0,
        );
        if raw < 0 {
            return false;
        }
        OwnedFd::from_raw_fd(raw as i32)
    };
    let unlimited = |limit: nix::Result<nix::sys::time::TimeVal>| {
        limit.is_ok_and(|limit| limit.tv_sec() == 0 && limit.tv_usec() == 0)
    };
    getsockopt(&socket, sockopt::SockType) == Ok(SockType::Stream)
        && unlimited(getsockopt(&socket, sockopt::ReceiveTimeout))
        && unlimited(getsockopt(&socket, sockopt::SendTimeout))
}
