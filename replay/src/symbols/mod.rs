//! Names for frames: function, file and line, demangled, with inlined functions.
//!
//! Works from files, on any machine that has them, long after the target is gone. A file is only
//! believed if it is the one that ran, see `source`. Nothing here asks a live process, and no file,
//! however hostile, makes it fail: what cannot be named stays unnamed, and what is only near a name
//! is said to be no more than that.
//!
//! Each file is read once, each place is asked for once.

mod bytes;
mod demangle;
mod dwarf;
mod elf;
mod go;
mod jit;
pub(crate) mod libraries;
mod name_log;
mod names;
mod source;
mod symtab;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use maptrail_tracelog::record::{FileInfo, ModuleInfo, ModuleKind, Name, NameSource, NamedFrame};
use maptrail_tracelog::types::ModuleId;
use rustc_hash::FxHashMap;

pub use jit::name_jit_code;
pub use name_log::{NameLogError, Named, name_log};
pub use names::{Frame, Names, path_of};
pub use source::Places;

use demangle::{demangle, is_mangled};
use dwarf::Dwarf;
use elf::Image;
use go::GoTable;
use symtab::{Found, Symbols};

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
#[derive(Debug, Default)]
pub struct Symboliser {
    places: Places,
    known: FxHashMap<ModuleId, Knowledge>,
}

/// What the files of a module tell.
#[derive(Debug, Default)]
struct Knowledge {
    dwarf: Option<Dwarf>,
    go: Option<GoTable>,
    symbols: Symbols,
}

impl Symboliser {
    /// One that takes files from there.
    #[must_use]
    pub fn new(places: Places) -> Symboliser {
        Symboliser {
            places,
            ..Symboliser::default()
        }
    }

    /// Whether its files are those that somebody named.
    fn asks_a_folder(&self) -> bool {
        matches!(self.places, Places::Below(_))
    }

    /// Names places in one module: one [`Name`] for each of `lookups` (see
    /// [`maptrail_tracelog::record::StackNode::lookup`]), in their order; without frames where
    /// nothing is known.
    pub fn name(&mut self, module: &Module<'_>, lookups: &[u64]) -> Vec<Name> {
        let unnamed = |&lookup: &u64| Name {
            module: module.id,
            lookup,
            source: NameSource::Symbols,
            frames: Vec::new(),
        };
        if module.info.kind != ModuleKind::File {
            return lookups.iter().map(unnamed).collect();
        }
        let places = &self.places;
        let known = self.known.entry(module.id);
        // Some parsers below us are not ours. What they held when they panicked is thrown away, so
        // nothing broken is seen afterwards.
        let known = known.or_insert_with(|| {
            catch_unwind(AssertUnwindSafe(|| Knowledge::of(places, module))).unwrap_or_default()
        });
        let named = lookups.iter().map(|lookup| {
            let mut name = unnamed(lookup);
            let found = catch_unwind(AssertUnwindSafe(|| known.find(*lookup)));
            let found = found.unwrap_or_else(|_| {
                known.dwarf = None;
                known.find(*lookup)
            });
            (name.source, name.frames) = found;
            name
        });
        named.collect()
    }
}

/// What makes one name better than another for the same place: that it is no guess, that it has a line,
/// that it tells more inlined functions.
fn quality(name: &Name) -> (bool, bool, usize) {
    let is_sure = !name.frames.is_empty() && name.source != NameSource::Dynamic;
    let has_line = name.frames.iter().any(|frame| frame.line.is_some());
    (is_sure, has_line, name.frames.len())
}

impl Knowledge {
    fn of(places: &Places, module: &Module<'_>) -> Knowledge {
        let files = places.find(module);
        let inner = files.own.as_ref().and_then(Image::inner);
        let images = [files.debug.as_ref(), files.own.as_ref(), inner.as_ref()];
        let images = images.into_iter().flatten();
        let (alt, package) = (files.alt.as_ref(), files.package.as_ref());
        Knowledge {
            symbols: Symbols::of(images.clone()),
            go: files.own.as_ref().and_then(GoTable::load),
            dwarf: images
                .filter(|image| image.has_debug())
                .find_map(|image| Dwarf::load(image, alt, package)),
        }
    }

    /// The functions at a place, innermost first, and how sure that is.
    fn find(&self, place: u64) -> (NameSource, Vec<NamedFrame>) {
        // No module reaches into the upper half; a damaged log may say so, and sums would overflow.
        if place > i64::MAX as u64 {
            return (NameSource::Symbols, Vec::new());
        }
        let mut frames = self.dwarf.as_ref().map_or(Vec::new(), |d| d.find(place));
        if !frames.iter().any(|frame| frame.function.is_some())
            && let Some(go) = self.go.as_ref().and_then(|go| go.find(place))
        {
            let frame = NamedFrame {
                function: go.function,
                file: go.file,
                line: go.line,
            };
            return (NameSource::Symbols, vec![frame]);
        }
        // Assembly has lines, and no functions; where there is no debug information, there are symbols;
        // and where it is short, it has names that say less than the symbol.
        let mut source = NameSource::Symbols;
        let mut outermost = frames.pop().unwrap_or_default();
        let symbol = self.symbols.find(place);
        match (&outermost.function, symbol) {
            (None, Some(Found::Near(name))) => {
                source = NameSource::Dynamic;
                outermost.function = Some(name.to_owned());
            }
            (None, Some(Found::In(name))) => outermost.function = Some(name.to_owned()),
            (Some(function), Some(Found::In(name)))
                if is_mangled(name) && !is_mangled(function) =>
            {
                outermost.function = Some(name.to_owned());
            }
            _ => {}
        }
        frames.push(outermost);
        let named = frames.into_iter().filter_map(|frame| {
            Some(NamedFrame {
                function: demangle(&frame.function?),
                file: frame.file,
                line: frame.line,
            })
        });
        (source, named.collect())
    }
}
