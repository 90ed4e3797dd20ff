//! What the fuzz targets share: a folder of hostile files, and questions to them.

use std::fs;
use std::path::PathBuf;

use maptrail_replay::symbols::{Module, Places, Symboliser};
use maptrail_tracelog::record::{FileInfo, ModuleInfo, ModuleKind};
use maptrail_tracelog::types::{FileId, ModuleId};
use tempfile::TempDir;

/// A folder in memory that stands for a recorded machine's root.
pub struct Machine {
    dir: TempDir,
}

/// The module's own file, its separate debug information by link, and what was split off from either.
pub const MODULE: &str = "module";
/// See [`MODULE`].
pub const DEBUG: &str = "module.debug";
/// See [`MODULE`].
pub const PACKAGE: &str = "module.dwp";

impl Machine {
    /// A machine without files.
    pub fn new() -> Machine {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        Machine { dir }
    }

    /// Puts a file there, instead of the one that was.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("memory can be written");
    }

    /// Takes a file away, if it is there.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks for the names of places in the module, and takes whatever comes.
    pub fn ask(&self, places: &[u64]) {
        let info = ModuleInfo {
            kind: ModuleKind::File,
            file: FileId(1),
            build_id: Vec::new(),
        };
        let file = FileInfo {
            dev: (0, 0),
            inode: 0,
            path: format!("/{MODULE}"),
        };
        let module = Module {
            id: ModuleId(1),
            info: &info,
            file: &file,
            opened: None,
        };
        let below = Places::below(self.dir.path()).expect("a folder");
        let names = Symboliser::new(below).name(&module, places);
        assert_eq!(names.len(), places.len());
        for frame in names.iter().flat_map(|name| &name.frames) {
            assert!(!frame.function.is_empty() && frame.function.len() < 4096);
        }
    }
}

impl Default for Machine {
    fn default() -> Machine {
        Machine::new()
    }
}

/// An ELF file with some sections: a name, a kind, the number of the section that it refers to, and its
/// bytes. They are numbered from 1.
pub fn elf(sections: &[(&str, u32, u32, &[u8])]) -> Vec<u8> {
    let mut names = vec![0];
    let mut file = vec![0; 64];
    let mut headers = vec![0; 64];
    let mut add = |file: &mut Vec<u8>, name: usize, kind: u32, link: u32, bytes: &[u8]| {
        // Code is where names are: all sections say that they are.
        let (flags, address) = (4_u64, 0_u64);
        headers.extend((name as u32).to_le_bytes());
        headers.extend(kind.to_le_bytes());
        headers.extend(flags.to_le_bytes());
        headers.extend(address.to_le_bytes());
        headers.extend((file.len() as u64).to_le_bytes());
        headers.extend((bytes.len() as u64).to_le_bytes());
        headers.extend(link.to_le_bytes());
        headers.extend([0; 20]);
        file.extend(bytes);
    };
    for (name, kind, link, bytes) in sections {
        let at = names.len();
        names.extend(name.bytes().chain([0]));
        add(&mut file, at, *kind, *link, bytes);
    }
    add(&mut file, 0, 3, 0, &names);
    let at = file.len() as u64;
    file.extend(&headers);
    // A shared library for x86-64.
    file[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0");
    file[20] = 1;
    file[40..48].copy_from_slice(&at.to_le_bytes());
    file[52..54].copy_from_slice(&64_u16.to_le_bytes());
    file[58..60].copy_from_slice(&64_u16.to_le_bytes());
    file[60..62].copy_from_slice(&(sections.len() as u16 + 2).to_le_bytes());
    file[62..64].copy_from_slice(&(sections.len() as u16 + 1).to_le_bytes());
    file
}
