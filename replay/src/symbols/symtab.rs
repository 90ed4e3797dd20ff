//! Names from symbol tables: which function a place lies in, or at least what it lies near.
//!
//! A name is told as true only where the file says that the function reaches so far. Between two
//! functions of a stripped library lie those that it does not export; hand-written assembly may have
//! no length at all. What is merely below such a place is called near, never its function.

use std::cmp::Reverse;

use super::elf::{Image, Symbol};

/// A symbol further below a place than this is not even near: there are most likely others between.
const NEAR: u64 = 4096;
/// So many symbols before a place are asked whether they reach it. Functions do not nest so deep.
const MAX_STEPS: usize = 256;

/// The functions of a module, from all its symbol tables.
#[derive(Debug, Default)]
pub struct Symbols {
    /// By address; of those that begin together, the shortest last.
    functions: Vec<Function>,
    names: String,
    /// Where each piece of code begins and ends, ascending.
    code: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Function {
    address: u64,
    end: u64,
    /// The furthest end of all up to this one.
    reach: u64,
    name: (usize, usize),
}

/// What a symbol table says of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// The function that it lies in.
    In(&'a str),
    /// The last symbol before it, which does not say that it reaches so far.
    Near(&'a str),
}

impl Symbols {
    /// The symbols of some files that describe the same code.
    pub fn of<'a>(images: impl Iterator<Item = &'a Image> + Clone) -> Symbols {
        let mut code: Vec<(u64, u64)> = images
            .clone()
            .flat_map(|image| &image.sections)
            .filter(|section| section.code)
            .map(|s| (s.address, s.address.saturating_add(s.size)))
            .collect();
        code.sort_unstable();
        code.dedup();
        Symbols::new(images.flat_map(Image::symbols).collect(), code)
    }

    fn new(mut symbols: Vec<Symbol>, code: Vec<(u64, u64)>) -> Symbols {
        // Of several names for the same function the one that people know comes first: exported,
        // without underscores, short.
        symbols.sort_unstable_by(|a, b| {
            let key = |s: &Symbol| (s.address, Reverse(s.size));
            let taste = |s: &Symbol| (s.local, underscores(&s.name), s.name.len());
            (key(a).cmp(&key(b)))
                .then_with(|| taste(a).cmp(&taste(b)))
                .then_with(|| a.name.cmp(&b.name))
        });
        symbols.dedup_by_key(|s| (s.address, s.size));
        let mut found = Symbols {
            code,
            ..Symbols::default()
        };
        let mut reach = 0;
        for symbol in symbols {
            let end = symbol.address.saturating_add(symbol.size);
            reach = end.max(reach);
            let start = found.names.len();
            found.names.push_str(without_version(&symbol.name));
            found.functions.push(Function {
                address: symbol.address,
                end,
                reach,
                name: (start, found.names.len()),
            });
        }
        found
    }

    /// What is known of a place.
    pub fn find(&self, place: u64) -> Option<Found<'_>> {
        let after = self.functions.partition_point(|f| f.address <= place);
        let before = self.functions.get(..after)?;
        let mut candidates = before.iter().rev().take(MAX_STEPS);
        let holder = candidates
            .by_ref()
            .take_while(|f| place < f.reach)
            .find(|f| place < f.end);
        if let Some(holder) = holder {
            return Some(Found::In(self.name(holder)?));
        }
        let nearest = before.last()?;
        let within = self.code.partition_point(|(start, _)| *start <= place);
        let (start, end) = *self.code.get(within.checked_sub(1)?)?;
        let near = place < end && nearest.address >= start && place - nearest.address <= NEAR;
        near.then(|| self.name(nearest).map(Found::Near))?
    }

    fn name(&self, function: &Function) -> Option<&str> {
        self.names.get(function.name.0..function.name.1)
    }
}

fn underscores(name: &str) -> usize {
    name.bytes().take_while(|b| *b == b'_').count()
}

/// Without `@@GLIBC_2.34` and the like.
fn without_version(name: &str) -> &str {
    match name.split_once('@') {
        Some((plain, version)) if !plain.is_empty() && !version.is_empty() => plain,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol((address, size, name): (u64, u64, &str)) -> Symbol {
        Symbol {
            address,
            size,
            local: name.starts_with("__GI_"),
            name: name.to_owned(),
        }
    }

    fn symbols(of: &[(u64, u64, &str)]) -> Symbols {
        let symbols = of.iter().copied().map(symbol).collect();
        Symbols::new(symbols, vec![(0x500, 0x600), (0x1000, 0x9000)])
    }

    #[test]
    fn only_a_function_that_reaches_a_place_gives_it_its_name() {
        let symbols = symbols(&[(0x1000, 0x20, "first"), (0x1100, 0x10, "second")]);
        assert_eq!(symbols.find(0xfff), None);
        assert_eq!(symbols.find(0x1000), Some(Found::In("first")));
        assert_eq!(symbols.find(0x101f), Some(Found::In("first")));
        assert_eq!(symbols.find(0x1020), Some(Found::Near("first")));
        assert_eq!(symbols.find(0x1110), Some(Found::Near("second")));
        assert_eq!(symbols.find(0x1100 + NEAR), Some(Found::Near("second")));
        assert_eq!(symbols.find(0x1101 + NEAR), None);
    }

    #[test]
    fn a_name_is_near_nothing_in_another_section() {
        let symbols = symbols(&[(0x5f0, 0x10, "_init"), (0x8ff0, 8, "last")]);
        assert_eq!(symbols.find(0x5ff), Some(Found::In("_init")));
        assert_eq!(symbols.find(0x1000), None);
        assert_eq!(symbols.find(0x8fff), Some(Found::Near("last")));
        assert_eq!(symbols.find(0x9000), None);
    }

    #[test]
    fn a_label_without_length_owns_nothing() {
        let symbols = symbols(&[
            (0x1000, 0x100, "whole"),
            (0x1040, 0, "label"),
            (0x2000, 0, "assembly"),
        ]);
        assert_eq!(symbols.find(0x1040), Some(Found::In("whole")));
        assert_eq!(symbols.find(0x1041), Some(Found::In("whole")));
        assert_eq!(symbols.find(0x2000), Some(Found::Near("assembly")));
        assert_eq!(symbols.find(0x2010), Some(Found::Near("assembly")));
    }

    #[test]
    fn the_innermost_of_nested_functions_is_the_one() {
        let symbols = symbols(&[
            (0x1000, 0x100, "outer"),
            (0x1000, 0x10, "entry"),
            (0x1050, 0x10, "inner"),
        ]);
        assert_eq!(symbols.find(0x1008), Some(Found::In("entry")));
        assert_eq!(symbols.find(0x1010), Some(Found::In("outer")));
        assert_eq!(symbols.find(0x1055), Some(Found::In("inner")));
        assert_eq!(symbols.find(0x1060), Some(Found::In("outer")));
    }

    #[test]
    fn of_many_names_the_best_known_is_taken() {
        for names in [
            ["__mmap", "mmap64", "mmap", "__GI_mmap"],
            ["mmap", "__GI_mmap", "__mmap", "mmap64"],
        ] {
            let symbols = symbols(&names.map(|name| (0x1000, 0x10, name)));
            assert_eq!(symbols.find(0x1001), Some(Found::In("mmap")));
        }
        let versioned = symbols(&[(0x1000, 0x10, "memcpy@@GLIBC_2.14")]);
        assert_eq!(versioned.find(0x1001), Some(Found::In("memcpy")));
    }

    #[test]
    fn functions_at_the_end_of_all_addresses_are_borne() {
        let symbols = symbols(&[(u64::MAX - 1, 8, "last"), (0, u64::MAX, "all")]);
        assert_eq!(symbols.find(7), Some(Found::In("all")));
        assert_eq!(symbols.find(u64::MAX - 1), Some(Found::In("last")));
    }
}
