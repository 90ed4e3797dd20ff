//! Opens a path of the target's inside the target's root.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// Opens regular file `path` for reading, with `root` as the root directory: absolute symbolic
/// links and `..` stay inside (openat2 with RESOLVE_IN_ROOT; a plain open would follow them on the
/// host).
pub fn in_root(root: &File, path: &str) -> io::Result<File> {
    let path = CString::new(path)?;
    // O_PATH first: opening a FIFO or a device can have effects.
    let look = openat2(root.as_raw_fd(), &path, libc::O_PATH)?;
    if !look.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    openat2(root.as_raw_fd(), &path, flags)
}

fn openat2(dir: i32, path: &CString, flags: i32) -> io::Result<File> {
    // SAFETY: all-zero is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the kernel reads one struct of the given size and a C string, and returns a new
    // descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_openat2,
            dir,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from_raw_fd(fd as i32))
    }
}

/// Takes possession of a descriptor that came over a socket.
#[must_use]
pub fn received_file(fd: RawFd) -> File {
    // SAFETY: the kernel made the descriptor for this process when the message was received, and
    // nobody else has been told of it.
    unsafe { File::from_raw_fd(fd) }
}
