//! Which code lies where in one address space: executable mappings, each a piece of a module or
//! memory without a file (a JIT's).
//!
//! The tracer keeps it up to date from the calls that it follows; nothing here reads `/proc`. Besides
//! what is executable now the map remembers which module a range was mapped from, because programs
//! replace parts of their own text by private copies (hooks, text moved to huge pages): such a copy is
//! still that module's code.

use maptrail_tracelog::types::{Addr, ModuleId, Range};

/// A run of executable memory, as [`AddressMap::lookup`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Where.
    pub range: Range,
    /// The module; `ModuleId(0)` where no file is behind it.
    pub module: ModuleId,
    /// Address minus module offset (wrapping); 0 where there is no module.
    pub bias: u64,
}

/// The executable memory of one space. `Clone` is what `fork` does.
#[derive(Clone, Debug, Default)]
pub struct AddressMap {
    /// What is executable now; ascending, disjoint.
    code: Pieces,
    /// What was mapped from a module and not unmapped since, executable or not; ascending, disjoint.
    claims: Pieces,
}

impl AddressMap {
    /// A space without code.
    #[must_use]
    pub fn new() -> AddressMap {
        AddressMap::default()
    }

    /// `range` became an executable mapping of `module`, replacing what was there. `bias` is
    /// [`super::Modules::bias`] of the mapping.
    pub fn insert(&mut self, range: Range, module: ModuleId, bias: u64) {
        let piece = Code {
            range,
            module,
            bias,
        };
        self.code.insert(piece);
        self.claims.insert(piece);
    }

    /// `range` became executable memory without a file: a JIT's, or, where a module's text was
    /// [covered](AddressMap::cover), that module's code again.
    pub fn insert_anonymous(&mut self, range: Range) {
        self.code.insert(Code {
            range,
            module: ModuleId(0),
            bias: 0,
        });
        for claim in self.claims.within(range) {
            self.code.insert(claim);
        }
    }

    /// `range` was unmapped.
    pub fn remove(&mut self, range: Range) {
        self.code.remove(range);
        self.claims.remove(range);
    }

    /// `range` is no longer executable, or something that is not was mapped over it (MAP_FIXED).
    /// If it becomes executable again without a file, it is taken for the same module's code.
    pub fn cover(&mut self, range: Range) {
        self.code.remove(range);
    }

    /// `mremap` moved `old` to `new`. What stood at `new` is covered; what stood at `old` is gone.
    pub fn relocate(&mut self, old: Range, new: Range) {
        let shift = new.start.0.wrapping_sub(old.start.0);
        let code = self.code.within(old);
        let claims = self.claims.within(old);
        self.remove(old);
        self.cover(new);
        let moved = |piece: Code| {
            let range = Range {
                start: Addr(piece.range.start.0.wrapping_add(shift)),
                end: Addr(piece.range.end.0.wrapping_add(shift)),
            };
            let range = range.intersect(new)?;
            let bias = if piece.module.0 == 0 {
                0
            } else {
                piece.bias.wrapping_add(shift)
            };
            Some(Code {
                range,
                bias,
                ..piece
            })
        };
        for claim in claims.into_iter().filter_map(moved) {
            self.claims.insert(claim);
        }
        for piece in code.into_iter().filter_map(moved) {
            if piece.module.0 == 0 {
                self.insert_anonymous(piece.range);
            } else {
                self.code.insert(piece);
            }
        }
    }

    /// The code at `pc`; `None` where nothing is known to be executable.
    #[inline]
    #[must_use]
    pub fn lookup(&self, pc: u64) -> Option<Code> {
        self.code.lookup(pc)
    }

    /// What is executable now, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Code> + '_ {
        self.code.0.iter().copied()
    }
}

/// Disjoint pieces in ascending order; neighbours that are alike are joined.
#[derive(Clone, Debug, Default)]
struct Pieces(Vec<Code>);

impl Pieces {
    #[inline]
    fn lookup(&self, pc: u64) -> Option<Code> {
        let after = self.0.partition_point(|p| p.range.start.0 <= pc);
        let piece = self.0.get(after.checked_sub(1)?)?;
        (pc < piece.range.end.0).then_some(*piece)
    }

    /// The indices of the pieces that share an address with `range`.
    fn touched(&self, range: Range) -> std::ops::Range<usize> {
        let start = self.0.partition_point(|p| p.range.end <= range.start);
        let end = self.0.partition_point(|p| p.range.start < range.end);
        start..end.max(start)
    }

    /// The parts of pieces inside `range`.
    fn within(&self, range: Range) -> Vec<Code> {
        let touched = self.0.get(self.touched(range)).unwrap_or_default();
        touched
            .iter()
            .filter_map(|p| {
                Some(Code {
                    range: p.range.intersect(range)?,
                    ..*p
                })
            })
            .collect()
    }

    fn remove(&mut self, range: Range) {
        if range.is_empty() {
            return;
        }
        let touched = self.touched(range);
        // Most calls do not concern code.
        if touched.is_empty() {
            return;
        }
        let pieces = self.0.get(touched.clone()).unwrap_or_default();
        let below = pieces.first().and_then(|p| {
            let end = p.range.end.min(range.start);
            cut(*p, p.range.start, end)
        });
        let above = pieces.last().and_then(|p| {
            let start = p.range.start.max(range.end);
            cut(*p, start, p.range.end)
        });
        self.0.splice(touched, below.into_iter().chain(above));
    }

    fn insert(&mut self, piece: Code) {
        if piece.range.is_empty() {
            return;
        }
        self.remove(piece.range);
        let at = self
            .0
            .partition_point(|p| p.range.start < piece.range.start);
        let joins = |a: &Code, b: &Code| {
            a.range.end == b.range.start && (a.module, a.bias) == (b.module, b.bias)
        };
        let mut piece = piece;
        let mut replaced = at..at;
        if let Some(before) = at.checked_sub(1).and_then(|i| self.0.get(i))
            && joins(before, &piece)
        {
            piece.range.start = before.range.start;
            replaced.start -= 1;
        }
        if let Some(next) = self.0.get(at)
            && joins(&piece, next)
        {
            piece.range.end = next.range.end;
            replaced.end += 1;
        }
        self.0.splice(replaced, [piece]);
    }
}

fn cut(piece: Code, start: Addr, end: Addr) -> Option<Code> {
    let range = Range { start, end };
    (!range.is_empty()).then_some(Code { range, ..piece })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range {
        Range {
            start: Addr(start * 0x1000),
            end: Addr(end * 0x1000),
        }
    }

    fn shown(map: &AddressMap) -> Vec<(u64, u64, u32, u64)> {
        map.iter()
            .map(|c| {
                (
                    c.range.start.0 / 0x1000,
                    c.range.end.0 / 0x1000,
                    c.module.0,
                    c.bias / 0x1000,
                )
            })
            .collect()
    }

    #[test]
    fn pieces_split_join_and_are_found() {
        let mut map = AddressMap::new();
        map.insert(range(10, 20), ModuleId(1), 0x8000);
        map.insert(range(20, 30), ModuleId(1), 0x8000);
        assert_eq!(shown(&map), [(10, 30, 1, 8)]);
        map.remove(range(12, 14));
        assert_eq!(shown(&map), [(10, 12, 1, 8), (14, 30, 1, 8)]);
        map.insert(range(11, 15), ModuleId(2), 0);
        assert_eq!(
            shown(&map),
            [(10, 11, 1, 8), (11, 15, 2, 0), (15, 30, 1, 8)]
        );
        assert_eq!(map.lookup(0xb000).map(|c| c.module), Some(ModuleId(2)));
        assert_eq!(map.lookup(0xf000 - 1).map(|c| c.module), Some(ModuleId(2)));
        assert_eq!(map.lookup(0xf000).map(|c| c.module), Some(ModuleId(1)));
        assert_eq!(map.lookup(0x9fff), None);
        assert_eq!(map.lookup(30 * 0x1000), None);
        map.remove(range(0, 100));
        assert_eq!(shown(&map), []);
    }

    #[test]
    fn a_private_copy_of_text_is_still_the_module() {
        let mut map = AddressMap::new();
        map.insert(range(10, 20), ModuleId(1), 0x8000);
        map.cover(range(8, 14));
        assert_eq!(map.lookup(0xb000), None);
        map.insert_anonymous(range(8, 14));
        assert_eq!(shown(&map), [(8, 10, 0, 0), (10, 20, 1, 8)]);
        map.remove(range(8, 14));
        map.insert_anonymous(range(8, 14));
        assert_eq!(shown(&map), [(8, 14, 0, 0), (14, 20, 1, 8)]);
    }

    #[test]
    fn a_move_takes_code_along() {
        let mut map = AddressMap::new();
        map.insert(range(10, 20), ModuleId(1), 0x8000);
        map.insert_anonymous(range(40, 42));
        map.relocate(range(18, 20), range(50, 52));
        assert_eq!(
            shown(&map),
            [(10, 18, 1, 8), (40, 42, 0, 0), (50, 52, 1, 40)]
        );
        map.relocate(range(40, 42), range(12, 14));
        assert_eq!(shown(&map), [(10, 18, 1, 8), (50, 52, 1, 40)]);
    }

    #[test]
    fn any_sequence_agrees_with_a_map_of_pages() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) % below
        };
        let mut map = AddressMap::new();
        let mut pages = [None::<(u32, u64)>; 64];
        for _ in 0..20_000 {
            let start = random(60);
            let end = (start + 1 + random(8)).min(64);
            let slots = start as usize..end as usize;
            match random(3) {
                0 => {
                    map.remove(range(start, end));
                    pages[slots].fill(None);
                }
                1 => {
                    map.remove(range(start, end));
                    map.insert_anonymous(range(start, end));
                    pages[slots].fill(Some((0, 0)));
                }
                _ => {
                    let (module, bias) = (1 + random(3) as u32, 0x1000 * random(2));
                    map.insert(range(start, end), ModuleId(module), bias);
                    pages[slots].fill(Some((module, bias)));
                }
            }
            for (i, page) in pages.iter().enumerate() {
                let found = map.lookup(i as u64 * 0x1000).map(|c| (c.module.0, c.bias));
                assert_eq!(found, *page);
            }
            for pair in map.code.0.windows(2) {
                assert!(pair[0].range.end <= pair[1].range.start);
            }
        }
    }
}
