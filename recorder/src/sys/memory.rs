//! Reads a target's memory in bulk.

use libc::{c_void, iovec, pid_t};
use maptrail_tracelog::types::Tid;

/// Copies target memory at `addr` into `buf`; returns how many bytes could be read from the start
/// (0 when the address is not readable, or the target is gone).
pub fn read(tid: Tid, addr: u64, buf: &mut [u8]) -> usize {
    let local = iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let remote = iovec {
        iov_base: addr as *mut c_void,
        iov_len: buf.len(),
    };
    // SAFETY: the kernel writes into `buf` only, at most its length; the remote address is data.
    let n = unsafe {
        libc::process_vm_readv(tid.0 as pid_t, &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(n).unwrap_or(0)
}

/// One 64-bit word, if it is readable.
#[must_use]
pub fn read_u64(tid: Tid, addr: u64) -> Option<u64> {
    let mut word = [0; 8];
    (read(tid, addr, &mut word) == 8).then(|| u64::from_le_bytes(word))
}

/// One 32-bit word, if it is readable.
#[must_use]
pub fn read_u32(tid: Tid, addr: u64) -> Option<u32> {
    let mut word = [0; 4];
    (read(tid, addr, &mut word) == 4).then(|| u32::from_le_bytes(word))
}
