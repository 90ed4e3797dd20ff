//! Attributes of files.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::ptr;

/// Whether the file has the extended attribute; false if nobody can tell.
#[must_use]
pub fn is_there(path: &str, name: &str) -> bool {
    let (Ok(path), Ok(name)) = (CString::new(path), CString::new(name)) else {
        return false;
    };
    // SAFETY: the kernel reads two C strings; with size 0 it tells the length and writes nothing.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), ptr::null_mut(), 0) >= 0 }
}

/// Whether the file is a pipe; false if nobody can tell. Does not ask a server that the file may be on.
#[must_use]
pub fn is_pipe(path: &str) -> bool {
    let Ok(path) = CString::new(path) else {
        return false;
    };
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the kernel reads a C string and writes one statx; zeroes are a valid one.
    let answer = unsafe {
        let flags = libc::AT_STATX_DONT_SYNC;
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            libc::STATX_TYPE,
            answer.as_mut_ptr(),
        );
        answer.assume_init()
    };
    u32::from(answer.stx_mode) & libc::S_IFMT == libc::S_IFIFO
}
