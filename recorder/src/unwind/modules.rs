//! The registry of modules: files (and the vdso) that code comes from, over all spaces.
//!
//! A module is a file with segments, not a line of maps: it is known by device and inode, and its
//! addresses are ELF virtual addresses, so that frames mean the same in every space and to every
//! symboliser. Each file stays open, so that what it says can be read after it was deleted or
//! replaced.

use std::cell::OnceCell;
use std::fs::File;

use maptrail_tracelog::record::ModuleKind;
use maptrail_tracelog::types::{ModuleId, Range};
use rustc_hash::FxHashMap;

use super::cfi::{Cfi, Entry};
use super::elf::{Layout, ModuleFile, Piece, Source};
use super::go::{GoTable, Place};
use super::reading;
use super::rules::{Cfa, General};
use super::separate::{Whereabouts, debug_file};

/// How long the code is that a program starts with, at most, bytes.
const LONGEST_ENTRY: u64 = 256;

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
    /// Where its separate debug file is looked for.
    whereabouts: Option<Whereabouts>,
    debug: OnceCell<Option<Source>>,
    /// `None` for what is no ELF file of ours.
    layout: Option<Layout>,
    /// Read when the first frame lies in the module.
    cfi: OnceCell<Cfi>,
    /// Where its functions begin; read when there is no unwind information for one of them.
    functions: OnceCell<Vec<u64>>,
    /// Go's table of its functions.
    go: OnceCell<Option<GoTable>>,
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

/// How a place in Go code gets to its caller.
pub(super) enum GoCode {
    /// It has none.
    Root,
    /// The return address lies so many bytes above the stack pointer.
    Frame(u32),
    /// By this rule, read from its code.
    Rule(General),
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

    /// Adds a file that could not be opened, as far as it is known.
    pub fn add_pieces(&mut self, key: FileKey, pieces: Vec<Piece>) -> ModuleId {
        if let Some(known) = self.find(key) {
            return known;
        }
        let id = self.add(ModuleKind::File, Source::Pieces(pieces.into()));
        self.files.insert(key, id);
        id
    }

    /// Whether a module is an ELF file.
    #[must_use]
    pub fn is_elf(&self, module: ModuleId) -> bool {
        self.get(module)
            .is_some_and(|module| module.layout.is_some())
    }

    /// Whether a module that was loaded with this `bias` has its code in `range`, all of it.
    #[must_use]
    pub fn has_text(&self, module: ModuleId, bias: u64, range: Range) -> bool {
        let layout = self.get(module).and_then(|m| m.layout.as_ref());
        let svma = range.start.0.wrapping_sub(bias);
        layout.is_some_and(|layout| layout.is_text(svma, range.len()))
    }

    /// Tells where a module's file was seen, so that its separate debug file is found if it is needed.
    pub fn was_seen_at(&mut self, module: ModuleId, whereabouts: Whereabouts) {
        let index = (module.0 as usize).wrapping_sub(1);
        if let Some(module) = self.modules.get_mut(index) {
            module.whereabouts.get_or_insert(whereabouts);
        }
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
            whereabouts: None,
            debug: OnceCell::new(),
            cfi: OnceCell::new(),
            functions: OnceCell::new(),
            go: OnceCell::new(),
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
                Source::Memory(_) | Source::Pieces(_) => None,
            })
    }

    /// Reads the tables of unwind information of all modules, which otherwise is done when the first
    /// frame lies in one.
    pub fn read_ahead(&self) {
        for module in &self.modules {
            if let Some(layout) = &module.layout {
                module.cfi.get_or_init(|| Cfi::load(&module.source, layout));
                module.go();
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
        let separate = || module.debug_file();
        cfi.find(&module.source, layout, &separate, svma, f)
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
        if module.is_entry(svma) || (after_call && module.ends_thread(svma)) {
            return Read::Root;
        }
        let functions = module.functions();
        let after = functions.partition_point(|start| *start <= svma);
        let start = after.checked_sub(1).and_then(|at| functions.get(at));
        let mut fetch = |svma, buf: &mut [u8]| module.read(svma, buf);
        let pc = svma.saturating_add(u64::from(after_call));
        start
            .and_then(|start| reading::from_start(&mut fetch, *start, pc, after_call))
            .or_else(|| reading::to_return(&mut fetch, pc))
            .map_or(Read::Nothing, Read::Rule)
    }

    /// What Go's own table says of `svma`, the last byte of a call if it is `after_call`. `None` for what
    /// is no Go code.
    pub(super) fn go_code(&self, module: ModuleId, svma: u64, after_call: bool) -> Option<GoCode> {
        let module = self.get(module)?;
        Some(match module.go()?.at(svma)? {
            Place::Top => GoCode::Root,
            Place::Frame(depth) => GoCode::Frame(depth),
            // What goes over to the system's stack, and comes back, does so by what its code reads from
            // memory. The rest never comes back.
            Place::Leaves => {
                let mut fetch = |svma, buf: &mut [u8]| module.read(svma, buf);
                let pc = svma.saturating_add(u64::from(after_call));
                reading::to_return(&mut fetch, pc)
                    .filter(|rule| matches!(rule.cfa, Cfa::Expression(_)))
                    .map_or(GoCode::Root, GoCode::Rule)
            }
        })
    }

    /// Whether a goroutine ends at the return address behind `svma`: where it starts there is nobody who
    /// called, and the address of this function was put on its stack.
    pub(super) fn is_goexit(&self, module: ModuleId, svma: u64) -> bool {
        self.get(module)
            .is_some_and(|module| module.is_goexit(svma))
    }

    fn get(&self, module: ModuleId) -> Option<&Module> {
        self.modules.get((module.0 as usize).checked_sub(1)?)
    }
}

impl Module {
    /// Code from `svma` on; returns how much there was.
    fn read(&self, svma: u64, buf: &mut [u8]) -> usize {
        let place = self
            .layout
            .as_ref()
            .and_then(|layout| layout.offset_of(svma));
        let Some((offset, rest)) = place else {
            return 0;
        };
        let n = usize::try_from(rest).map_or(buf.len(), |rest| rest.min(buf.len()));
        self.source
            .read(offset, buf.get_mut(..n).unwrap_or_default())
    }

    /// Where its functions begin, as far as that is known.
    fn functions(&self) -> &[u64] {
        let load = || {
            let layout = self.layout.as_ref()?;
            let own = layout.functions(&self.source);
            own.or_else(|| {
                let source = self.debug_file()?;
                Layout::read(source)?.functions(source)
            })
            .or_else(|| layout.exported_functions(&self.source))
        };
        self.functions.get_or_init(|| load().unwrap_or_default())
    }

    /// Whether `svma`, which no unwind information describes, lies in what the kernel starts a program
    /// with. Nobody calls that.
    fn is_entry(&self, svma: u64) -> bool {
        let entry = self.layout.as_ref().map_or(0, |layout| layout.entry);
        if !(entry..entry.saturating_add(LONGEST_ENTRY)).contains(&svma) {
            return false;
        }
        let next = self.functions().partition_point(|start| *start <= entry);
        let end = self.functions().get(next).copied().unwrap_or(u64::MAX);
        let mut fetch = |svma, buf: &mut [u8]| self.read(svma, buf);
        svma < end.min(reading::end_of(&mut fetch, entry))
    }

    fn go(&self) -> Option<&GoTable> {
        let load = || {
            let layout = self.layout.as_ref()?;
            // Where the loader relocates the table it is called otherwise.
            let names: [&[u8]; 2] = [b".gopclntab", b".data.rel.ro.gopclntab"];
            let mut found = names.into_iter().filter_map(|name| {
                let svma = layout.section_svma(&self.source, name)?;
                Some((svma, layout.contents(&self.source, name)?))
            });
            let (svma, table) = found.next()?;
            let relocated = |at: u64| layout.relocated(&self.source, svma.checked_add(at)?);
            GoTable::new(table, relocated)
        };
        self.go.get_or_init(load).as_ref()
    }

    /// Whether a thread, or a goroutine, ends when it returns to the address behind `svma`.
    fn ends_thread(&self, svma: u64) -> bool {
        let mut fetch = |svma, buf: &mut [u8]| self.read(svma, buf);
        self.is_goexit(svma) || reading::exits(&mut fetch, svma.saturating_add(1))
    }

    /// `runtime.goexit` is `nop; call goexit1; nop`, and its second instruction is what goroutines
    /// return to.
    fn is_goexit(&self, svma: u64) -> bool {
        let mut code = [0; 7];
        let is_it = |code: &[u8; 7]| matches!(code, [0x90, 0xe8, _, _, _, _, 0x90]);
        self.read(svma, &mut code) == code.len() && is_it(&code) && self.go().is_some()
    }

    /// Its separate debug file, looked for once.
    fn debug_file(&self) -> Option<&Source> {
        let look = || {
            let (at, layout) = (self.whereabouts.as_ref()?, self.layout.as_ref()?);
            debug_file(at, &self.source, layout)
        };
        self.debug.get_or_init(look).as_ref()
    }
}

fn id_of(index: usize) -> ModuleId {
    ModuleId(u32::try_from(index + 1).unwrap_or(u32::MAX))
}
