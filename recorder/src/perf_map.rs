//! What a just-in-time compiler writes down of the code that it makes: a *perf map*, the file
//! `/tmp/perf-PID.map`. The PID is the one that the program itself sees, and `/tmp` is the program's own.
//!
//! Its place is found while the program's last state is looked at, and the file is opened then, or right
//! after. Its length at that moment is where it ends for us: what is written later is of later code. It
//! is read when nobody waits any more, by whoever names functions (`maptrail_replay::symbols`).

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use maptrail_tracelog::types::{SpaceId, Tid};

use crate::proc;
use crate::sys::open;
use crate::unwind::AddressMap;

/// So many are kept open; of spaces that come later, code in no file has no names.
pub const MOST: usize = 256;
/// Where the kernel's half begins, with code in no file of its own (`[vsyscall]`).
const KERNEL: u64 = 1 << 63;

/// A perf map, as it was when its space was looked at for the last time.
#[derive(Debug)]
pub struct PerfMap {
    /// Whose code it names.
    pub space: SpaceId,
    /// The file. It may go on beyond `length`, and is not to be trusted.
    pub file: File,
    /// Its length then, bytes.
    pub length: u64,
}

/// Where a space's perf map is, if there is one. Stays good when the process has ended.
pub struct Place {
    space: SpaceId,
    root: File,
    path: String,
    owner: u32,
}

impl Place {
    /// The place for the space of a live thread. `None` if its `code` all lies in files: to ask costs
    /// the thread some time, and most programs have no such compiler.
    #[must_use]
    pub fn of(tid: Tid, space: SpaceId, code: &AddressMap) -> Option<Place> {
        let in_no_file = code
            .iter()
            .any(|c| c.module.0 == 0 && c.range.start.0 < KERNEL);
        if !in_no_file {
            return None;
        }
        Some(Place {
            space,
            root: File::open(format!("/proc/{tid}/root")).ok()?,
            path: format!("tmp/perf-{}.map", proc::pid_inside(tid)?),
            owner: proc::effective_uid(tid)?,
        })
    }

    /// Opens the file. Everybody may write to `/tmp`: only what the program's own user or root made is
    /// taken.
    #[must_use]
    pub fn open(&self) -> Option<PerfMap> {
        let file = open::in_root(&self.root, &self.path).ok()?;
        let meta = file.metadata().ok()?;
        let trusted = meta.is_file() && [self.owner, 0].contains(&meta.uid());
        trusted.then_some(PerfMap {
            space: self.space,
            length: meta.len(),
            file,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use maptrail_tracelog::types::{Addr, ModuleId, Range};
    use tempfile::TempDir;

    use super::*;

    fn code(start: u64, module: u32) -> AddressMap {
        let mut code = AddressMap::new();
        let range = Range {
            start: Addr(start),
            end: Addr(start + 0x1000),
        };
        match module {
            0 => code.insert_anonymous(range),
            module => code.insert(range, ModuleId(module), 0),
        }
        code
    }

    #[test]
    fn only_code_in_no_file_needs_one() {
        let me = Tid(std::process::id());
        let place = |code| Place::of(me, SpaceId(7), &code);
        assert!(place(code(0x1000, 1)).is_none());
        assert!(place(code(0xffff_ffff_ff60_0000, 0)).is_none());
        let place = place(code(0x1000, 0)).expect("a place");
        assert_eq!(place.path, format!("tmp/perf-{me}.map"));
    }

    #[test]
    fn what_others_put_there_is_not_taken() {
        let me = proc::effective_uid(Tid(std::process::id())).expect("a user");
        let root = TempDir::new().expect("a temporary directory");
        let mut place = Place {
            space: SpaceId(7),
            root: File::open(root.path()).expect("a directory"),
            path: "tmp/perf-1.map".into(),
            owner: me,
        };
        assert!(place.open().is_none());
        fs::create_dir(root.path().join("tmp")).expect("a directory");
        let path = root.path().join(&place.path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(place.open().is_none());
        fs::remove_file(&path).expect("removed");
        // An absolute link leads to a file inside, not to the one of this machine.
        symlink("/inside", &path).expect("a link");
        assert!(place.open().is_none());
        fs::write(root.path().join("inside"), "1000 10 f\n").expect("written");
        let map = place.open().expect("a map");
        assert_eq!((map.space, map.length), (SpaceId(7), 10));
        place.owner += 1;
        // Root's is anybody's.
        assert_eq!(place.open().is_some(), me == 0);
    }
}
