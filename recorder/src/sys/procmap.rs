//! Asks the kernel about single mappings and about resident pages, without reading text.
//!
//! `PROCMAP_QUERY` (Linux 6.11) on `/proc/PID/maps` and `PAGEMAP_SCAN` (Linux 6.7) on
//! `/proc/PID/pagemap`; see Documentation/filesystems/proc.rst and include/uapi/linux/fs.h.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use maptrail_tracelog::types::{Addr, Perms, Range};

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
const COVERING_OR_NEXT_VMA: u64 = 0x10;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// `PAGE_IS_PRESENT`, `PAGE_IS_SWAPPED` and `PAGE_IS_PFNZERO`.
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO_PAGE: u64 = 1 << 5;

#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// One mapping, as the kernel answered. The name is left in the caller's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Where.
    pub range: Range,
    /// `rwxp`.
    pub perms: Perms,
    /// File offset, bytes.
    pub offset: u64,
    /// Device.
    pub dev: (u32, u32),
    /// Inode.
    pub inode: u64,
    /// Length of the name in the buffer.
    pub name_len: usize,
}

/// The mapping that holds `addr`, or the first above it. `Ok(None)`: there is none. An error of
/// `ENOTTY` means that the kernel is older than the question.
pub fn query(maps: &File, addr: Addr, name: &mut [u8]) -> io::Result<Option<Found>> {
    let mut q = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: COVERING_OR_NEXT_VMA,
        query_addr: addr.0,
        vma_name_size: u32::try_from(name.len()).unwrap_or(u32::MAX),
        vma_name_addr: name.as_mut_ptr() as u64,
        ..ProcmapQuery::default()
    };
    // SAFETY: the kernel reads and writes one struct of the size that it is told, and at most
    // vma_name_size bytes at vma_name_addr, which is `name`.
    let answer = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut q) };
    if answer < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(None),
            _ => Err(error),
        };
    }
    Ok(Some(Found {
        range: Range {
            start: Addr(q.vma_start),
            end: Addr(q.vma_end),
        },
        perms: Perms((q.vma_flags & 0xf) as u8),
        offset: q.vma_offset,
        dev: (q.dev_major, q.dev_minor),
        inode: q.inode,
        // The kernel counts the closing NUL.
        name_len: (q.vma_name_size as usize).saturating_sub(1).min(name.len()),
    }))
}

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// Where pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In RAM.
    Resident,
    /// In swap.
    Swapped,
}

/// Walks the pages of `range` that are in RAM or in swap, ascending, and calls `each` for every run.
/// Returns how far it got: less than the end when the answer filled the internal buffer, so call it
/// again from there. `ENOTTY`: the kernel is too old.
pub fn scan(pagemap: &File, range: Range, mut each: impl FnMut(Range, Place)) -> io::Result<Addr> {
    let mut regions = [ScanRegion::default(); 512];
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        start: range.start.0,
        end: range.end.0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_anyof_mask: PRESENT | SWAPPED,
        return_mask: PRESENT | SWAPPED | ZERO_PAGE,
        ..ScanArg::default()
    };
    // SAFETY: the kernel reads and writes one struct of the size that it is told, and at most
    // vec_len regions at vec.
    let n = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    for region in regions.iter().take(n as usize) {
        if region.categories & ZERO_PAGE != 0 {
            // The one page of zeros that every read of untouched memory shows: nobody's RAM.
            continue;
        }
        let place = if region.categories & PRESENT != 0 {
            Place::Resident
        } else {
            Place::Swapped
        };
        let run = Range {
            start: Addr(region.start),
            end: Addr(region.end),
        };
        each(run, place);
    }
    Ok(Addr(arg.walk_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_have_the_size_that_the_request_numbers_carry() {
        assert_eq!(
            size_of::<ProcmapQuery>(),
            (PROCMAP_QUERY as usize >> 16) & 0x3fff
        );
        assert_eq!(size_of::<ScanArg>(), (PAGEMAP_SCAN as usize >> 16) & 0x3fff);
    }
}
