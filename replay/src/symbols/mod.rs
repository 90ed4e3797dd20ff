//! Names for frames: function, file and line, demangled, with inlined functions.
//!
//! Works from files, on any machine that has them, long after the target is gone. A file is only
//! believed if it is the one that ran: same build id, or the same device and inode where it has
//! none. Separate debug information is taken from `/usr/lib/debug/.build-id`. Nothing here asks a
//! live process, and no file, however hostile, makes it fail: what cannot be named stays unnamed.

mod demangle;
mod elf;
mod jit;
pub(crate) mod libraries;
mod name_log;
mod names;
mod source;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};
use maptrail_tracelog::record::{FileInfo, ModuleInfo, ModuleKind, Name, NameSource, NamedFrame};
use maptrail_tracelog::types::ModuleId;
use rustc_hash::FxHashMap;

pub use jit::name_jit_code;
pub use name_log::{NameLogError, Named, name_log};
pub use names::{Frame, Names, path_of};

use demangle::demangle;
use elf::Exported;
use source::NameFile;

/// Something that frames lie in, and where its bytes may be had.
#[derive(Clone, Debug)]
pub struct Module<'a> {
    /// Its id in the log.
    pub id: ModuleId,
    /// What the log says of it.
    pub info: &'a ModuleInfo,
    /// The file behind it, as maps named it.
    pub file: &'a FileInfo,
    /// A path that leads to the very file that ran, such as `/proc/self/fd/7` of a descriptor that
    /// was opened while it ran.
    pub opened: Option<PathBuf>,
}

/// Finds names. Serves one log, since it knows modules by their ids, and remembers what it learned of
/// their files for as long as it lives.
#[derive(Debug)]
pub struct Symboliser {
    blazesym: Symbolizer,
    /// The files of each module that was asked for.
    sources: FxHashMap<ModuleId, Rc<[NameFile]>>,
}

impl Default for Symboliser {
    fn default() -> Symboliser {
        Symboliser {
            blazesym: new_blazesym(),
            sources: FxHashMap::default(),
        }
    }
}

fn new_blazesym() -> Symbolizer {
    Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_demangling(false)
        .build()
}

impl Symboliser {
    /// Names places in one module: one [`Name`] for each of `lookups` (see
    /// [`maptrail_tracelog::record::StackNode::lookup`]), in their order; without frames where
    /// nothing is known.
    pub fn name(&mut self, module: &Module<'_>, lookups: &[u64]) -> Vec<Name> {
        let mut names: Vec<Name> = lookups
            .iter()
            .map(|&lookup| Name {
                module: module.id,
                lookup,
                source: NameSource::Symbols,
                frames: Vec::new(),
            })
            .collect();
        if module.info.kind != ModuleKind::File {
            return names;
        }
        let sources = self.sources.entry(module.id);
        let sources = Rc::clone(sources.or_insert_with(|| source::sources(module).into()));
        for source in sources.iter() {
            self.fill(&source.path, source.debug, &mut names);
            for name in names.iter_mut().filter(|n| n.frames.is_empty()) {
                fill_from_exports(name, &source.exported);
            }
        }
        names
    }

    /// Asks one file for the names that are still missing.
    fn fill(&mut self, path: &Path, debug: bool, names: &mut [Name]) {
        // No module reaches into the upper half; a damaged log may say so, and sums would overflow.
        let possible = |n: &&mut Name| n.frames.is_empty() && n.lookup <= i64::MAX as u64;
        let mut missing: Vec<&mut Name> = names.iter_mut().filter(possible).collect();
        let lookups: Vec<u64> = missing.iter().map(|n| n.lookup).collect();
        let found = self.ask(path, debug, &lookups).or_else(|Failed| {
            // One bad place spoils its whole batch: ask for each by itself, once.
            let each = |&lookup: &u64| {
                let found = self.ask(path, debug, &[lookup]).ok();
                found.and_then(|mut f| f.pop()).unwrap_or_default()
            };
            Ok::<_, Failed>(lookups.iter().take(MAX_SINGLE).map(each).collect())
        });
        for (name, frames) in missing.iter_mut().zip(found.unwrap_or_default()) {
            name.frames = frames;
        }
    }

    /// The frames of each place, innermost first; none where the file knows nothing.
    fn ask(
        &mut self,
        path: &Path,
        debug: bool,
        lookups: &[u64],
    ) -> Result<Vec<Vec<NamedFrame>>, Failed> {
        if lookups.is_empty() {
            return Ok(Vec::new());
        }
        let mut elf = Elf::new(path);
        elf.debug_syms = debug;
        let source = Source::Elf(elf);
        // The parsers below us are not ours. After a panic the object's caches may be half-built, so
        // it is thrown away: that makes it safe to say that nothing broken is seen afterwards.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let found = self.blazesym.symbolize(&source, Input::VirtOffset(lookups));
            found.map(|all| all.iter().map(frames).collect())
        }));
        match outcome {
            Ok(found) => found.map_err(|_| Failed),
            Err(_) => {
                self.blazesym = new_blazesym();
                Err(Failed)
            }
        }
    }
}

/// The symboliser could not read a file.
struct Failed;

/// After a file has failed once, so many of its places are tried one by one.
const MAX_SINGLE: usize = 256;

fn frames(found: &Symbolized<'_>) -> Vec<NamedFrame> {
    let Symbolized::Sym(sym) = found else {
        return Vec::new();
    };
    let Sym {
        name,
        code_info,
        inlined,
        ..
    } = sym;
    // blazesym lists the functions from the outside in.
    let mut frames: Vec<NamedFrame> = inlined
        .iter()
        .rev()
        .map(|f| frame(&f.name, f.code_info.as_ref()))
        .collect();
    frames.push(frame(name, code_info.as_deref()));
    frames
}

fn frame(name: &str, code: Option<&CodeInfo<'_>>) -> NamedFrame {
    NamedFrame {
        function: demangle(name),
        file: code.map(|c| c.to_path().to_string_lossy().into_owned()),
        line: code.and_then(|c| c.line),
    }
}

/// Past the end of an exported function its name is only told so near to its start, in bytes. Further
/// on, there are most likely others in between.
const NEAR: u64 = 4096;

/// Names a place by the last exported function below it. Inside of what the file says is that
/// function's length it is as good as any name; past it, the name may be another function's.
fn fill_from_exports(name: &mut Name, exported: &[Exported]) {
    let after = exported.partition_point(|e| e.address <= name.lookup);
    let Some(nearest) = after.checked_sub(1).and_then(|i| exported.get(i)) else {
        return;
    };
    let distance = name.lookup - nearest.address;
    let inside = distance < nearest.size;
    if !inside && distance > NEAR {
        return;
    }
    name.source = if inside {
        NameSource::Symbols
    } else {
        NameSource::Dynamic
    };
    name.frames = vec![NamedFrame {
        function: demangle(&nearest.name),
        file: None,
        line: None,
    }];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_far_from_what_is_exported_has_no_name() {
        let exported = [Exported {
            address: 0x1000,
            size: 0x2000,
            name: "large".into(),
        }];
        let small = [Exported {
            size: 8,
            ..exported[0].clone()
        }];
        let source_at = |lookup, exported: &[Exported]| {
            let mut name = Name {
                module: ModuleId(1),
                lookup,
                source: NameSource::Symbols,
                frames: Vec::new(),
            };
            fill_from_exports(&mut name, exported);
            name.frames.first().map(|_| name.source)
        };
        assert_eq!(source_at(0x2fff, &exported), Some(NameSource::Symbols));
        assert_eq!(source_at(0x2000, &small), Some(NameSource::Dynamic));
        assert_eq!(source_at(0x2001, &small), None);
    }
}
