//! Which pages of a space are in RAM, and the kernel's own counters of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use maptrail_tracelog::record::{PageRun, Residency, RssSample, Vma};
use maptrail_tracelog::types::{Addr, PAGE, Range, SpaceId, Tid};

use crate::proc;
use crate::sys::procmap::{self, Place};

/// So many bytes of a space are looked at in one question: memory calls of a running target wait for it.
const AT_ONCE: u64 = 256 << 20;

/// `VmSize`, `RssAnon`, ... of `/proc/PID/status`, in bytes. Counters that the kernel does not show
/// stay 0.
pub fn rss(tid: Tid) -> io::Result<RssSample> {
    let text = proc::read_text(&format!("/proc/{tid}/status"))?;
    let mut sample = RssSample::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let field = match key {
            "VmSize" => &mut sample.size,
            "RssAnon" => &mut sample.anon,
            "RssFile" => &mut sample.file,
            "RssShmem" => &mut sample.shmem,
            "VmSwap" => &mut sample.swap,
            _ => continue,
        };
        let kib = value.trim().trim_end_matches(" kB").trim();
        *field = kib.parse::<u64>().unwrap_or(0).saturating_mul(1024);
    }
    if sample.size == 0 {
        // The thread is dead; its memory is not 0, it is unknown.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(sample)
}

/// Where the kernel tells of each page of a thread's space. Stays good when the thread is gone.
pub fn pagemap(tid: Tid) -> io::Result<File> {
    File::open(format!("/proc/{tid}/pagemap"))
}

/// Looks at the pages of `vmas`, for at most `budget`; what was not reached is missing from
/// `looked_at`.
pub fn pages(
    pagemap: &File,
    space: SpaceId,
    vmas: &[Vma],
    budget: Duration,
) -> io::Result<Residency> {
    let end = Instant::now() + budget;
    let mut runs = [Runs::default(), Runs::default()];
    let mut looked_at: Vec<Range> = Vec::new();
    let mut scan = true;
    for vma in vmas {
        // [vsyscall] lies in the kernel's half.
        if vma.range.start.0 >= 1 << 63 {
            continue;
        }
        let mut at = vma.range.start;
        while at < vma.range.end && Instant::now() < end {
            let left = Range {
                start: at,
                end: vma.range.end.min(Addr(at.0.saturating_add(AT_ONCE))),
            };
            let each = |run: Range, place| {
                if let Some(runs) = runs.get_mut(usize::from(place == Place::Swapped)) {
                    runs.add(run);
                }
            };
            let reached = if scan {
                match procmap::scan(pagemap, left, each) {
                    Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                        scan = false;
                        continue;
                    }
                    answer => answer?,
                }
            } else {
                read_entries(pagemap, left, each)?
            };
            if reached <= at {
                break;
            }
            at = reached;
        }
        let seen = Range {
            start: vma.range.start,
            end: at,
        };
        match looked_at.last_mut() {
            Some(last) if last.end == seen.start => last.end = seen.end,
            _ if !seen.is_empty() => looked_at.push(seen),
            _ => {}
        }
        if at < vma.range.end {
            break;
        }
    }
    let [resident, swapped] = runs.map(|r| r.runs);
    Ok(Residency {
        space,
        looked_at,
        resident,
        swapped,
    })
}

/// The same by reading pagemap's 64-bit entries (before Linux 6.7): bit 63 present, bit 62 swapped.
fn read_entries(
    pagemap: &File,
    range: Range,
    mut each: impl FnMut(Range, Place),
) -> io::Result<Addr> {
    let mut raw = [0u8; 4096];
    let n = pagemap.read_at(&mut raw, range.start.0 / PAGE * 8)?;
    let mut at = range.start;
    for entry in raw.chunks_exact(8).take(n / 8) {
        if at >= range.end {
            break;
        }
        let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
        let page = Range {
            start: at,
            end: Addr(at.0 + PAGE),
        };
        if entry >> 63 & 1 == 1 {
            each(page, Place::Resident);
        } else if entry >> 62 & 1 == 1 {
            each(page, Place::Swapped);
        }
        at = page.end;
    }
    Ok(at)
}

/// Joins neighbouring runs and counts in pages.
#[derive(Default)]
struct Runs {
    runs: Vec<PageRun>,
    end: u64,
}

impl Runs {
    fn add(&mut self, range: Range) {
        let (start, pages) = (range.start.0 / PAGE, range.len() / PAGE);
        match self.runs.last_mut() {
            Some(last) if start == self.end => last.pages += pages,
            _ => self.runs.push(PageRun {
                gap: start.saturating_sub(self.end),
                pages,
            }),
        }
        self.end = start + pages;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// Says loudly that a test compared nothing, for want of something that Linux `since` brought.
    /// Fails in CI, unless the kernel is too old to have it.
    pub(crate) fn skip_without(what: &str, since: (u32, u32)) {
        let release = proc::read_text("/proc/sys/kernel/osrelease").expect("reads");
        let release = release.trim_end();
        let ci = std::env::var_os("CI").is_some();
        let excused = !ci || version(release).is_some_and(|v| v < since);
        assert!(excused, "no {what} on Linux {release}");
        // Not through a macro, whose words the test harness keeps to itself.
        let _ = writeln!(io::stderr(), "SKIPPED: no {what} on Linux {release}");
    }

    /// Major and minor number of a kernel's release.
    fn version(release: &str) -> Option<(u32, u32)> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some((next()?, next()?))
    }

    #[test]
    fn only_old_kernels_are_excused() {
        assert_eq!(version("6.1.0-13-amd64\n"), Some((6, 1)));
        assert_eq!(version("6.11-rc3"), Some((6, 11)));
        assert_eq!(version("linux"), None);
        assert!(version("6.9.12") < version("6.11.0"));
    }

    #[test]
    fn both_ways_of_looking_agree_on_this_process() {
        let touched = vec![1u8; 64 << 12];
        let start = Addr(touched.as_ptr() as u64).page_up();
        let range = Range {
            start,
            end: Addr(start.0 + (32 << 12)),
        };
        let pagemap = File::open("/proc/self/pagemap").expect("opens");
        let (mut read, mut scanned) = (0, 0);
        let mut at = range.start;
        while at < range.end {
            let left = Range { start: at, ..range };
            at = read_entries(&pagemap, left, |r, _| read += r.len()).expect("reads");
        }
        assert_eq!(read, range.len());
        match procmap::scan(&pagemap, range, |r, _| scanned += r.len()) {
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                skip_without("PAGEMAP_SCAN", (6, 7));
            }
            answer => assert_eq!((answer.expect("scans"), scanned), (range.end, read)),
        }
    }

    #[test]
    fn the_counters_of_this_process_hold_what_it_touched() {
        let touched = vec![1u8; 64 << 12];
        let rss = rss(Tid(std::process::id())).expect("reads");
        assert!(rss.anon >= touched.len() as u64 && rss.size > rss.anon);
    }
}
