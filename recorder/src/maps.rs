//! `/proc/PID/maps`: parsing, asking about one range, and giving files their ids.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use maptrail_tracelog::record::{FileInfo, Vma};
use maptrail_tracelog::types::{Addr, FileId, Perms, Range};
use rustc_hash::FxHashMap;

use crate::sys::procmap::{self, Found};

/// Files that are remembered at least.
const REMEMBERED: usize = 4096;

/// Gives (device, inode, name) an id, and remembers which are new to the log. A program may map ever
/// new files (each shared anonymous mapping is one), so those that were not met for long are forgotten:
/// met again, they get another id, which to the log's readers means the same.
#[derive(Default)]
pub struct FileTable {
    recent: Generation,
    older: Generation,
    last: u32,
    unreported: VecDeque<FileId>,
}

#[derive(Default)]
struct Generation {
    ids: FxHashMap<FileInfo, FileId>,
    infos: FxHashMap<FileId, FileInfo>,
}

impl FileTable {
    /// The id of a file; plain anonymous memory is [`FileId::ANON`].
    pub fn intern(&mut self, info: FileInfo) -> FileId {
        if info.inode == 0 && info.path.is_empty() {
            return FileId::ANON;
        }
        if let Some(id) = self.recent.ids.get(&info) {
            return *id;
        }
        let id = match self.older.ids.get(&info) {
            Some(id) => *id,
            None => {
                self.last = self.last.saturating_add(1);
                self.unreported.push_back(FileId(self.last));
                FileId(self.last)
            }
        };
        // What was not reported must not be forgotten.
        if self.recent.ids.len() >= REMEMBERED.max(self.unreported.len()) {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.infos.insert(id, info.clone());
        self.recent.ids.insert(info, id);
        id
    }

    /// What an id stands for that was met lately.
    #[must_use]
    pub fn info(&self, id: FileId) -> Option<&FileInfo> {
        let recent = self.recent.infos.get(&id);
        recent.or_else(|| self.older.infos.get(&id))
    }

    /// The next one that the log was not told of.
    pub fn next_new(&mut self) -> Option<(FileId, FileInfo)> {
        let id = self.unreported.pop_front()?;
        Some((id, self.info(id)?.clone()))
    }
}

/// Asks the kernel about the mappings of one space through its open `maps` file.
pub struct Maps {
    file: File,
    /// PROCMAP_QUERY works here (Linux 6.11).
    query: bool,
}

impl Maps {
    /// Takes an open `/proc/PID/maps`. It goes on naming the same space whatever the process does.
    #[must_use]
    pub fn new(file: File) -> Maps {
        Maps { file, query: true }
    }

    /// All mappings, ascending. An error if the space went while it was read: the kernel then ends
    /// the list wherever it is.
    pub fn all(&self, files: &mut FileTable) -> io::Result<Vec<Vma>> {
        let mut text = Vec::with_capacity(16 << 10);
        let mut chunk = [0; 16 << 10];
        loop {
            let n = self.file.read_at(&mut chunk, text.len() as u64)?;
            match chunk.get(..n) {
                Some(got) if !got.is_empty() => text.extend_from_slice(got),
                _ => break,
            }
        }
        if self.file.read_at(&mut chunk, 0)? == 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(text
            .split(|b| *b == b'\n')
            .filter_map(parse_line)
            .map(|line| line.intern(files))
            .collect())
    }

    /// The mapping that holds `addr`, whole.
    pub fn at(&mut self, addr: Addr, files: &mut FileTable) -> io::Result<Option<Vma>> {
        Ok(self
            .at_or_above(addr, files)?
            .filter(|vma| vma.range.contains(addr)))
    }

    /// The mappings inside `range`, clipped to it, ascending.
    pub fn within(&mut self, range: Range, files: &mut FileTable) -> io::Result<Vec<Vma>> {
        let mut found = Vec::new();
        if self.query {
            let mut at = range.start;
            while let Some(vma) = self.at_or_above(at, files)? {
                let Some(clipped) = clip(vma, range) else {
                    break;
                };
                found.push(clipped);
                at = vma.range.end;
                if at >= range.end {
                    break;
                }
            }
            if self.query {
                return Ok(found);
            }
        }
        Ok(self
            .all(files)?
            .into_iter()
            .filter_map(|vma| clip(vma, range))
            .collect())
    }

    fn at_or_above(&mut self, addr: Addr, files: &mut FileTable) -> io::Result<Option<Vma>> {
        if self.query {
            let mut name = [0; 4096];
            match procmap::query(&self.file, addr, &mut name) {
                Ok(found) => {
                    return Ok(found.map(|f| found_vma(f, name.get(..f.name_len), files)));
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    self.query = false;
                }
                Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self
            .all(files)?
            .into_iter()
            .find(|vma| vma.range.end > addr))
    }
}

/// The part of a mapping that lies in a range.
pub fn clip(vma: Vma, to: Range) -> Option<Vma> {
    let range = vma.range.intersect(to)?;
    let cut = range.start.0 - vma.range.start.0;
    let backed = vma.offset != 0 || vma.file != FileId::ANON;
    Some(Vma {
        range,
        offset: if backed { vma.offset + cut } else { 0 },
        ..vma
    })
}

fn found_vma(found: Found, name: Option<&[u8]>, files: &mut FileTable) -> Vma {
    Vma {
        range: found.range,
        perms: found.perms,
        offset: found.offset,
        file: files.intern(FileInfo {
            dev: found.dev,
            inode: found.inode,
            path: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        }),
    }
}

/// One parsed line.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    range: Range,
    perms: Perms,
    offset: u64,
    file: FileInfo,
}

impl Line {
    fn intern(self, files: &mut FileTable) -> Vma {
        Vma {
            range: self.range,
            perms: self.perms,
            offset: self.offset,
            file: files.intern(self.file),
        }
    }
}

/// `start-end perms offset major:minor inode   path` (proc_pid_maps(5)). `None` for a line that is
/// not of this form.
fn parse_line(line: &[u8]) -> Option<Line> {
    let mut rest = line;
    let mut word = || {
        let start = rest.iter().position(|b| *b != b' ')?;
        let from = rest.get(start..)?;
        let end = from.iter().position(|b| *b == b' ').unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        rest = after;
        Some(word)
    };
    let (start, end) = split_hex(word()?, b'-')?;
    let perms = Perms::parse(word()?)?;
    let offset = hex(word()?)?;
    let (major, minor) = split_hex(word()?, b':')?;
    let inode = std::str::from_utf8(word()?).ok()?.parse().ok()?;
    let path = rest.iter().position(|b| *b != b' ');
    let path = path.and_then(|at| rest.get(at..)).unwrap_or_default();
    Some(Line {
        range: Range {
            start: Addr(start),
            end: Addr(end),
        },
        perms,
        offset,
        file: FileInfo {
            dev: (u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
            inode,
            path: String::from_utf8_lossy(path).into_owned(),
        },
    })
}

fn split_hex(word: &[u8], at: u8) -> Option<(u64, u64)> {
    let mut halves = word.splitn(2, |b| *b == at);
    Some((hex(halves.next()?)?, hex(halves.next()?)?))
}

fn hex(word: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::tests::skip_without;

    #[test]
    fn a_line_with_spaces_in_its_path() {
        let line = b"7f0c4a600000-7f0c4a621000 r-xs 00001000 fe:10 4711                       /tmp/a b (deleted)";
        let line = parse_line(line).expect("parses");
        assert_eq!(line.range.len(), 0x21000);
        assert_eq!(line.perms.to_string(), "r-xs");
        assert_eq!(line.offset, 0x1000);
        assert_eq!(line.file.dev, (0xfe, 0x10));
        assert_eq!(line.file.inode, 4711);
        assert_eq!(line.file.path, "/tmp/a b (deleted)");
    }

    #[test]
    fn anonymous_memory_has_no_file() {
        let line = parse_line(b"7f0c4a600000-7f0c4a621000 rw-p 00000000 00:00 0 ").expect("parses");
        let mut files = FileTable::default();
        assert_eq!(line.intern(&mut files).file, FileId::ANON);
    }

    #[test]
    fn files_that_are_met_again_and_again_are_remembered_and_others_are_not() {
        let file = |inode| FileInfo {
            dev: (0, 1),
            inode,
            path: "/dev/zero (deleted)".into(),
        };
        let mut files = FileTable::default();
        let kept = files.intern(file(1));
        for inode in 2..100_000 {
            let id = files.intern(file(inode));
            assert_eq!(files.intern(file(1)), kept);
            assert_eq!(files.info(id), Some(&file(inode)));
            while let Some((id, info)) = files.next_new() {
                assert_eq!(files.info(id), Some(&info));
            }
        }
        let held = |generation: &Generation| generation.ids.len() + generation.infos.len();
        assert!(held(&files.recent) + held(&files.older) <= 4 * REMEMBERED);
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for bad in [
            "",
            "x",
            "1-2",
            "1-2 rwxq 0 0:0 0",
            "zz-2 rwxp 0 0:0 0",
            "1-2 rwxp 0 0 0",
        ] {
            assert_eq!(parse_line(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn both_ways_of_asking_agree_on_this_process() {
        let file = || File::open("/proc/self/maps").expect("opens");
        let mut files = FileTable::default();
        let all = Maps::new(file()).all(&mut files).expect("reads");
        let text = all
            .iter()
            .find(|v| v.perms.executable() && v.file != FileId::ANON)
            .expect("this program has text");
        let (mut fast, mut slow) = (Maps::new(file()), Maps::new(file()));
        slow.query = false;
        let at = Addr(text.range.start.0 + 0x10);
        assert_eq!(slow.at(at, &mut files).expect("reads"), Some(*text));
        assert_eq!(fast.at(at, &mut files).expect("asks"), Some(*text));
        if !fast.query {
            skip_without("PROCMAP_QUERY", (6, 11));
        }
    }
}
