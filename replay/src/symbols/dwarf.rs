//! Function, file and line from debug information (DWARF), with inlined functions.
//!
//! The bytes are those of a file that is not trusted: see `bytes` for what bounds the parsing, and
//! [`check`] for what would end it badly all the same. Which files to read is decided elsewhere: here
//! nothing that a file names is opened.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use addr2line::{Context, LookupContinuation, LookupResult};
use gimli::{AbbreviationsCacheStrategy, DwarfPackage, RunTimeEndian, SectionId};
use object::Endianness;

use super::bytes::{Budget, Bytes};
use super::elf::Image;

/// What all sections of debug information of a module may take in memory. A module with more is named by
/// its symbols.
const MAX_DEBUG: u64 = 2 << 30;
/// Entries nested deeper than this (functions inlined into one another) are no compiler's: the parser
/// below goes as deep on the stack.
const MAX_DEPTH: isize = 512;
/// The longest chain of inlined functions that is told.
const MAX_INLINED: usize = 64;

/// The debug information of one module.
pub struct Dwarf {
    context: Context<Bytes>,
    package: Option<DwarfPackage<Bytes>>,
    budget: Budget,
}

/// One function at a place.
#[derive(Debug, Default)]
pub struct Place {
    /// As the linker knows it.
    pub function: Option<String>,
    /// The source file.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
}

impl fmt::Debug for Dwarf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dwarf").finish_non_exhaustive()
    }
}

impl Dwarf {
    /// Reads the debug information of `image`; `alt` shares parts of it with other files, `package`
    /// (a `.dwp`) has the greater part of it if it was split off. `None` if there is none that could
    /// be borne.
    pub fn load(image: &Image, alt: Option<&Image>, package: Option<&Image>) -> Option<Dwarf> {
        let budget = Budget::new();
        let mut room = MAX_DEBUG;
        let mut dwarf = gimli::Dwarf::load(|id| load(image, id.name(), &budget, &mut room)).ok()?;
        if let Some(alt) = alt {
            dwarf
                .load_sup(|id| load(alt, id.name(), &budget, &mut room))
                .ok()?;
        }
        // A hundred units may share one table of abbreviations: it is to be read once.
        dwarf.populate_abbreviations_cache(AbbreviationsCacheStrategy::Duplicates);
        check(&dwarf, &budget)?;
        if let Some(sup) = dwarf.sup() {
            check(sup, &budget)?;
        }
        let package = package.and_then(|package| {
            let empty = Bytes::new(Vec::new(), endian(package), &budget);
            let section = |id: SectionId| match id.dwo_name() {
                Some(name) => load(package, name, &budget, &mut room),
                None => Ok(empty.clone()),
            };
            DwarfPackage::load(section, empty.clone()).ok()
        });
        Some(Dwarf {
            context: Context::from_dwarf(dwarf).ok()?,
            package,
            budget,
        })
    }

    /// The functions at a place, innermost first; empty if it does not know the place.
    pub fn find(&self, place: u64) -> Vec<Place> {
        self.budget.add_question();
        self.try_find(place).unwrap_or_default()
    }

    fn try_find(&self, place: u64) -> gimli::Result<Vec<Place>> {
        let mut lookup = self.context.find_frames(place);
        let mut frames = loop {
            match lookup {
                LookupResult::Output(frames) => break frames?,
                LookupResult::Load { load, continuation } => {
                    let part = self.package.as_ref().and_then(|package| {
                        let part = package.find_cu(load.dwo_id, &load.parent).ok()??;
                        check(&part, &self.budget)?;
                        #[expect(clippy::arc_with_non_send_sync, reason = "the parser wants one")]
                        Some(Arc::new(part))
                    });
                    lookup = continuation.resume(part);
                }
            }
        };
        let mut places = Vec::new();
        while places.len() < MAX_INLINED
            && let Some(frame) = frames.next()?
        {
            let (file, line) = frame.location.map_or((None, None), |l| (l.file, l.line));
            let name = frame.function.as_ref().map(|f| f.raw_name()).transpose()?;
            places.push(Place {
                function: name.map(Cow::into_owned).filter(|name| !name.is_empty()),
                file: file.map(str::to_owned),
                line: line.filter(|line| *line > 0),
            });
        }
        Ok(places)
    }
}

fn endian(image: &Image) -> RunTimeEndian {
    match image.endian {
        Endianness::Little => RunTimeEndian::Little,
        Endianness::Big => RunTimeEndian::Big,
    }
}

/// A section's bytes; empty if the file has none. Fails if there is no room for it.
fn load(image: &Image, name: &str, budget: &Budget, room: &mut u64) -> gimli::Result<Bytes> {
    let old = name.replacen(".debug_", ".zdebug_", 1);
    let section = image.section(name).or_else(|| image.section(&old));
    let bytes = match section.filter(|_| is_needed(name)) {
        Some(section) => image.bytes(section, *room),
        None => Some(Vec::new()),
    };
    let bytes = bytes.ok_or(gimli::Error::TypeMismatch)?;
    *room = room.saturating_sub(bytes.len() as u64);
    Ok(Bytes::new(bytes, endian(image), budget))
}

/// Where variables are, which macros and which types there are: nobody asks here.
fn is_needed(section: &str) -> bool {
    // The index of a package refers to all of its sections.
    section.ends_with(".dwo")
        || !section.starts_with(".debug_loc")
            && !section.starts_with(".debug_mac")
            && section != ".debug_types"
            && section != ".debug_names"
}

/// Reads everything once, and keeps nothing: `None` if entries are nested as no compiler does it, or are
/// so many, for the file's size, that the budget does not suffice.
fn check(dwarf: &gimli::Dwarf<Bytes>, budget: &Budget) -> Option<()> {
    let mut units = dwarf.units();
    while let Ok(Some(header)) = units.next() {
        // A unit that cannot be read is no danger: it ends the reading of itself.
        let Ok(abbreviations) = dwarf.abbreviations(&header) else {
            continue;
        };
        let Ok(mut entries) = header.entries_raw(&abbreviations, None) else {
            continue;
        };
        while !entries.is_empty() {
            if entries.next_depth() > MAX_DEPTH {
                return None;
            }
            match entries.read_abbreviation() {
                Ok(Some(entry)) => {
                    // Attributes that take no byte take time.
                    if !budget.spend(entry.attributes().len()) {
                        return None;
                    }
                    if entries.skip_attributes(entry.attributes()).is_err() {
                        break;
                    }
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
    }
    Some(())
}
