//! The registry of modules: files (and the vdso) that code comes from, over all spaces.
//!
//! A module is a file with segments, not a line of maps: it is known by device and inode, and its
//! addresses are ELF virtual addresses, so that frames mean the same in every space and to every
//! symboliser. Each file stays open, so that what it says can be read after it was deleted or
//! replaced.

use std::cell::OnceCell;
use std::fs::File;

use maptrail_tracelog::record::ModuleKind;
use maptrail_tracelog::types::ModuleId;
use rustc_hash::FxHashMap;

use super::cfi::{Cfi, Entry};
use super::elf::{Layout, ModuleFile, Source};
use super::reading;
use super::rules::General;

/// How long the code is that a program starts with, at most, bytes.
const ENTRY: u64 = 64;

/// What identifies a file, as the kernel names it in maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Device, major and minor.
    pub dev: (u32, u32),
    /// Inode number.
    pub inode: u64,
}

/// All modules seen so far, numbered from 1.
#[derive(Default)]
pub struct Modules {
    modules: Vec<Module>,
    files: FxHashMap<FileKey, ModuleId>,
}

struct Module {
    kind: ModuleKind,
    source: Source,
    /// `None` for what is no ELF file of ours.
    layout: Option<Layout>,
    /// Read when the first frame lies in the module.
    cfi: OnceCell<Cfi>,
    /// Where its functions begin; read when there is no unwind information for one of them.
    functions: OnceCell<Vec<u64>>,
}

/// What code without unwind information says of its caller.
pub(super) enum Read {
    /// It has none.
    Root,
    /// How to get there.
    Rule(General),
    /// Nothing.
    Nothing,
}

impl Modules {
    /// None yet.
    #[must_use]
    pub fn new() -> Modules {
        Modules::default()
    }

    /// The module of a file, if it was added.
    #[must_use]
    pub fn find(&self, key: FileKey) -> Option<ModuleId> {
        self.files.get(&key).copied()
    }

    /// Adds a file that was mapped executable; returns the module that it already is, if so. Any
    /// content is accepted: what is no ELF file is a module without segments and unwind information.
    pub fn add_file(&mut self, key: FileKey, file: impl Into<ModuleFile>) -> ModuleId {
        if let Some(known) = self.find(key) {
            return known;
        }
        let id = self.add(ModuleKind::File, Source::File(file.into()));
        self.files.insert(key, id);
        id
    }

    /// Adds the vdso from its bytes in memory; returns the module that equal bytes already are.
    pub fn add_memory(&mut self, bytes: &[u8]) -> ModuleId {
        let same = |m: &Module| matches!(&m.source, Source::Memory(known) if **known == *bytes);
        if let Some(known) = self.modules.iter().position(same) {
            return id_of(known);
        }
        self.add(ModuleKind::Vdso, Source::Memory(bytes.into()))
    }

    fn add(&mut self, kind: ModuleKind, source: Source) -> ModuleId {
        self.modules.push(Module {
            kind,
            layout: Layout::read(&source),
            source,
            cfi: OnceCell::new(),
            functions: OnceCell::new(),
        });
        id_of(self.modules.len() - 1)
    }

    /// Address minus module offset for an executable mapping at `start` of the file from
    /// `file_offset` on, both in bytes (`file_offset` is 0 for the vdso). The same for all pieces of
    /// one load of a module. Offsets are those of the file where it has no segment there.
    #[must_use]
    pub fn bias(&self, module: ModuleId, start: u64, file_offset: u64) -> u64 {
        let layout = self.get(module).and_then(|m| m.layout.as_ref());
        let svma = layout.and_then(|layout| layout.svma_of(file_offset));
        start.wrapping_sub(svma.unwrap_or(file_offset))
    }

    /// What a module is; `None` for an unknown id.
    #[must_use]
    pub fn kind(&self, module: ModuleId) -> Option<ModuleKind> {
        Some(self.get(module)?.kind)
    }

    /// The GNU build id; empty if it has none.
    #[must_use]
    pub fn build_id(&self, module: ModuleId) -> &[u8] {
        let layout = self.get(module).and_then(|m| m.layout.as_ref());
        layout.map_or(&[], |layout| &layout.build_id)
    }

    /// The open files, for whoever looks up names later.
    pub fn files(&self) -> impl Iterator<Item = (ModuleId, &File)> {
        self.modules
            .iter()
            .enumerate()
            .filter_map(|(index, module)| match &module.source {
                Source::File(file) => Some((id_of(index), file.file())),
                Source::Memory(_) => None,
            })
    }

    /// Reads the tables of unwind information of all modules, which otherwise is done when the first
    /// frame lies in one.
    pub fn read_ahead(&self) {
        for module in &self.modules {
            if let Some(layout) = &module.layout {
                module.cfi.get_or_init(|| Cfi::load(&module.source, layout));
            }
        }
    }

    /// How many there are; also the last one's id.
    #[must_use]
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Hands the unwind entries that may describe `svma` to `f`, until it takes one.
    pub(super) fn cfi_at<T>(
        &self,
        module: ModuleId,
        svma: u64,
        f: impl FnMut(&Entry) -> Option<T>,
    ) -> Option<T> {
        let module = self.get(module)?;
        let layout = module.layout.as_ref()?;
        let cfi = module.cfi.get_or_init(|| Cfi::load(&module.source, layout));
        cfi.find(&module.source, layout, svma, f)
    }

    /// `N` bytes of a module's code.
    pub(super) fn code_at<const N: usize>(&self, module: ModuleId, svma: u64) -> Option<[u8; N]> {
        let module = self.get(module)?;
        let (offset, _) = module.layout.as_ref()?.offset_of(svma)?;
        module.source.array(offset)
    }

    /// [Reads](super::reading) the code around `svma`, the last byte of a call if it is `after_call`.
    pub(super) fn read_code(&self, module: ModuleId, svma: u64, after_call: bool) -> Read {
        let Some(module) = self.get(module) else {
            return Read::Nothing;
        };
        let Some(layout) = &module.layout else {
            return Read::Nothing;
        };
        // Nobody calls what the kernel starts a program with.
        if svma.checked_sub(layout.entry).is_some_and(|at| at < ENTRY) {
            return Read::Root;
        }
        let functions = (module.functions).get_or_init(|| layout.functions(&module.source));
        let after = functions.partition_point(|start| *start <= svma);
        let start = after.checked_sub(1).and_then(|at| functions.get(at));
        let mut fetch = |svma, buf: &mut [u8]| match layout.offset_of(svma) {
            Some((offset, rest)) => {
                let n = usize::try_from(rest).map_or(buf.len(), |rest| rest.min(buf.len()));
                module
                    .source
                    .read(offset, buf.get_mut(..n).unwrap_or_default())
            }
            None => 0,
        };
        let pc = svma.saturating_add(u64::from(after_call));
        start
            .and_then(|start| reading::from_start(&mut fetch, *start, pc, after_call))
            .or_else(|| reading::to_return(&mut fetch, pc))
            .map_or(Read::Nothing, Read::Rule)
    }

    fn get(&self, module: ModuleId) -> Option<&Module> {
        self.modules.get((module.0 as usize).checked_sub(1)?)
    }
}

fn id_of(index: usize) -> ModuleId {
    ModuleId(u32::try_from(index + 1).unwrap_or(u32::MAX))
}
