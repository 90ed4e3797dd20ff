//! Extended attributes of files.

use std::ffi::CString;
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
