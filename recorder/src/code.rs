//! Which file stands behind executable memory: opens modules at first sight and keeps each space's
//! map of code up to date from the recorded calls.
//!
//! A module is opened when it is mapped, through the descriptor that the program itself mapped, so
//! that a file replaced later does not lie. The target's own paths are data: they are resolved
//! inside the target's root, and what is found there must be the inode that the kernel named.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use maptrail_tracelog::record::{Body, FileInfo, ModuleInfo, ModuleKind, Vma};
use maptrail_tracelog::types::{FileId, ModuleId, Perms, Range, SpaceId, Tid};
use rustc_hash::FxHashSet;

use crate::image;
use crate::maps::FileTable;
use crate::patience::{PATIENCE, within};
use crate::sys::{memory, open};
use crate::unwind::{AddressMap, FileKey, ModuleFile, Modules, Whereabouts};

/// So many files that could not be had are remembered.
const MOST_UNKNOWN: usize = 4096;
/// Longest vdso that is believed, bytes.
const VDSO_MAX: u64 = 64 << 10;

/// What the log has been told of the unwinder's modules.
#[derive(Default)]
pub struct CodeLog {
    reported: usize,
    /// The [`FileId`] of each module, in the order of their ids.
    files: Vec<FileId>,
    /// (space, module) pairs whose base the log knows.
    bases: FxHashSet<(u32, u32)>,
    /// Files of which nothing could be had; they are not asked for again.
    unknown: FxHashSet<FileKey>,
}

/// The target that a mapping belongs to, and how it came by it.
#[derive(Clone, Copy)]
pub struct Source {
    /// A live thread of the space.
    pub tid: Tid,
    /// The descriptor that it mapped, where that is known.
    pub fd: Option<i32>,
}

impl CodeLog {
    /// Notes an executable mapping of a space in its `map`.
    pub fn add(
        &mut self,
        modules: &mut Modules,
        map: &mut AddressMap,
        source: Source,
        vma: &Vma,
        files: &FileTable,
    ) {
        match self.module_of(modules, source, vma, files) {
            Some(module) => {
                let bias = modules.bias(module, vma.range.start.0, vma.offset);
                map.insert(vma.range, module, bias);
            }
            None => map.insert_anonymous(vma.range),
        }
    }

    /// Notes the executable ones of these mappings, ascending, of which none is left out between the first
    /// and the last.
    pub fn add_all(
        &mut self,
        modules: &mut Modules,
        map: &mut AddressMap,
        source: Source,
        vmas: &[Vma],
        files: &FileTable,
    ) {
        let info = |vma: &Vma| files.info(vma.file);
        let has_file = |vma: &&Vma| info(vma).is_some_and(|file| file.inode != 0);
        for (at, vma) in vmas.iter().enumerate() {
            if !vma.perms.executable() {
                continue;
            }
            self.add(modules, map, source, vma, files);
            if info(vma).is_none_or(|file| file.path.starts_with("[anon")) {
                let below = vmas.iter().take(at).rfind(has_file);
                let above = vmas.iter().skip(at).find(has_file);
                self.add_between(modules, map, source, vma.range, (below, above), files);
            }
        }
    }

    /// Notes executable memory without a file that lies between two mappings, where it is the text of one
    /// of their files: some programs move theirs to larger pages before anybody looks.
    fn add_between(
        &mut self,
        modules: &mut Modules,
        map: &mut AddressMap,
        source: Source,
        range: Range,
        (below, above): (Option<&Vma>, Option<&Vma>),
        files: &FileTable,
    ) {
        let neighbours = [below, above].into_iter().flatten();
        // The rest of a module is mapped for this space alone, and most of it is not written.
        for vma in neighbours.filter(|vma| vma.perms.0 & (Perms::S | Perms::W) == 0) {
            let Some(module) = self.module_of(modules, source, vma, files) else {
                continue;
            };
            let bias = modules.bias(module, vma.range.start.0, vma.offset);
            if modules.has_text(module, bias, range) {
                return map.insert(range, module, bias);
            }
        }
    }

    /// The module that a mapping is a part of.
    fn module_of(
        &mut self,
        modules: &mut Modules,
        source: Source,
        vma: &Vma,
        files: &FileTable,
    ) -> Option<ModuleId> {
        let info = files.info(vma.file)?;
        let module = if info.path == "[vdso]" {
            vdso(modules, source.tid, vma)
        } else if info.inode == 0 {
            None
        } else {
            self.find_file(modules, source, info, vma)
        }?;
        while self.files.len() < modules.len() {
            self.files.push(vma.file);
        }
        // What a program writes into a file of its own in memory, and runs, is as good as no file.
        let is_written = info.path.starts_with("/memfd:") && !modules.is_elf(module);
        (!is_written).then_some(module)
    }

    /// The module of a file that is mapped at `vma`.
    fn find_file(
        &mut self,
        modules: &mut Modules,
        source: Source,
        info: &FileInfo,
        vma: &Vma,
    ) -> Option<ModuleId> {
        let key = FileKey {
            dev: info.dev,
            inode: info.inode,
        };
        if let Some(known) = modules.find(key) {
            return Some(known);
        }
        if self.unknown.contains(&key) {
            return None;
        }
        let (named, range) = (info.clone(), vma.range);
        let file = within(PATIENCE, move || {
            open_file(source, &named, range).map(ModuleFile::from)
        });
        let module = match file.flatten() {
            Some(file) => modules.add_file(key, file),
            None => {
                let pieces = image::pieces(source.tid, info, vma);
                if pieces.is_empty() {
                    if self.unknown.len() >= MOST_UNKNOWN {
                        self.unknown.clear();
                    }
                    self.unknown.insert(key);
                    return None;
                }
                modules.add_pieces(key, pieces)
            }
        };
        let seen = Whereabouts {
            tid: source.tid,
            path: info.path.clone(),
        };
        modules.was_seen_at(module, seen);
        Some(module)
    }

    /// The next module that was not yet reported here.
    pub fn next_new(&mut self, modules: &Modules) -> Option<(ModuleId, ModuleInfo)> {
        if self.reported >= modules.len() {
            return None;
        }
        let file = self.files.get(self.reported).copied().unwrap_or_default();
        self.reported += 1;
        let id = ModuleId(u32::try_from(self.reported).unwrap_or(u32::MAX));
        let info = ModuleInfo {
            kind: modules.kind(id).unwrap_or(ModuleKind::File),
            file,
            build_id: modules.build_id(id).to_vec(),
        };
        Some((id, info))
    }

    /// Where modules lie in a space, for those that were not reported here.
    pub fn new_bases(&mut self, space: SpaceId, map: &AddressMap) -> Vec<Body> {
        map.iter()
            .filter(|code| code.module.0 != 0 && self.bases.insert((space.0, code.module.0)))
            .map(|code| Body::ModuleBase {
                space,
                module: code.module,
                bias: code.bias,
            })
            .collect()
    }
}

fn vdso(modules: &mut Modules, tid: Tid, vma: &Vma) -> Option<ModuleId> {
    let mut bytes = vec![0; usize::try_from(vma.range.len().min(VDSO_MAX)).ok()?];
    let n = memory::read(tid, vma.range.start.0, &mut bytes);
    Some(modules.add_memory(bytes.get(..n)?))
}

/// The file that a thread mapped at `range`, if it can be opened.
fn open_file(source: Source, info: &FileInfo, range: Range) -> Option<File> {
    let tid = source.tid;
    let places = [
        source.fd.map(|fd| format!("/proc/{tid}/fd/{fd}")),
        Some(format!("/proc/{tid}/exe")),
        Some(format!("/proc/{tid}/map_files/{range}")),
    ];
    let by_link = places.into_iter().flatten();
    by_link
        .filter_map(|place| open_regular(&place).ok())
        .find(|file| is_inode(file, info.inode))
        .or_else(|| {
            let root = File::open(format!("/proc/{tid}/root")).ok()?;
            let path = info.path.strip_prefix('/')?;
            open::in_root(&root, path)
                .ok()
                .filter(|file| is_inode(file, info.inode))
        })
}

/// Opens a file only if it is a regular one: opening a device or a FIFO can have effects.
fn open_regular(path: &str) -> io::Result<File> {
    let look = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)?;
    let kind = look.metadata()?.file_type();
    if !kind.is_file() || kind.is_fifo() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
}

/// Whether a file is the one that the kernel named. The device is not compared: what maps shows and
/// what stat says differ on btrfs and overlay file systems.
fn is_inode(file: &File, inode: u64) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.ino() == inode)
}
