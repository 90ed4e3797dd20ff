//! A naive kernel: an array of pages. What the model does with ranges and maps, this does page by
//! page, so that the two can only agree if both are right.

use std::collections::BTreeMap;

use maptrail_tracelog::record::Vma;
use maptrail_tracelog::types::{Addr, FileId, PAGE, Perms, Range, Stamp};

use crate::log::START_BRK;

/// A page: attributes, and the exit stamp of the call that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub perms: Perms,
    pub file: FileId,
    pub offset: u64,
    pub born: Stamp,
}

#[derive(Clone, Debug)]
pub struct Kernel {
    pub pages: BTreeMap<u64, Page>,
    pub brk: u64,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel {
            pages: BTreeMap::new(),
            brk: START_BRK,
        }
    }
}

impl Kernel {
    pub fn is_free(&self, start: u64, pages: u64) -> bool {
        self.numbers(start, pages)
            .all(|n| !self.pages.contains_key(&n))
    }

    pub fn is_full(&self, start: u64, pages: u64) -> bool {
        self.numbers(start, pages)
            .all(|n| self.pages.contains_key(&n))
    }

    fn numbers(&self, start: u64, pages: u64) -> impl Iterator<Item = u64> + use<> {
        start / PAGE..start / PAGE + pages
    }

    pub fn map(&mut self, start: u64, pages: u64, first: Page) {
        for (i, n) in self.numbers(start, pages).enumerate() {
            let offset = if first.file == FileId::ANON {
                0
            } else {
                first.offset + i as u64 * PAGE
            };
            self.pages.insert(n, Page { offset, ..first });
        }
    }

    pub fn unmap(&mut self, start: u64, pages: u64) {
        for n in self.numbers(start, pages) {
            self.pages.remove(&n);
        }
    }

    /// Up to the first hole, as `mprotect` does; whether there was none.
    pub fn protect(&mut self, start: u64, pages: u64, prot: u64) -> bool {
        for n in self.numbers(start, pages) {
            let Some(page) = self.pages.get_mut(&n) else {
                return false;
            };
            page.perms = page.perms.with_prot(prot);
        }
        true
    }

    /// Whether maps would show the pages as one line.
    pub fn is_one(&self, start: u64, pages: u64) -> bool {
        let numbers: Vec<u64> = self.numbers(start, pages).collect();
        let follows = |two: &[u64]| match (self.pages.get(&two[0]), self.pages.get(&two[1])) {
            (Some(a), Some(b)) => joins(a, b),
            _ => false,
        };
        numbers.iter().all(|n| self.pages.contains_key(n)) && numbers.windows(2).all(follows)
    }

    /// Takes pages out, holes and all.
    pub fn take(&mut self, start: u64, pages: u64) -> Vec<Option<Page>> {
        self.numbers(start, pages)
            .map(|n| self.pages.remove(&n))
            .collect()
    }

    pub fn put(&mut self, start: u64, pages: &[Option<Page>]) {
        for (n, page) in (start / PAGE..).zip(pages) {
            if let Some(page) = page {
                self.pages.insert(n, *page);
            }
        }
    }

    /// What follows the page before `start`, for growing a mapping.
    pub fn continued(&self, start: u64, born: Stamp) -> Page {
        let last = self.pages[&(start / PAGE - 1)];
        let offset = if last.file == FileId::ANON {
            0
        } else {
            last.offset + PAGE
        };
        Page {
            offset,
            born,
            ..last
        }
    }

    pub fn set_brk(&mut self, end: u64, born: Stamp) {
        let (old, new) = (self.brk.next_multiple_of(PAGE), end.next_multiple_of(PAGE));
        let page = Page {
            perms: Perms(Perms::R | Perms::W),
            file: FileId::ANON,
            offset: 0,
            born,
        };
        if new > old {
            self.map(old, (new - old) / PAGE, page);
        } else {
            self.unmap(new, (old - new) / PAGE);
        }
        self.brk = end;
    }

    /// As `/proc/PID/maps` has it.
    pub fn vmas(&self) -> Vec<Vma> {
        let mut vmas: Vec<(Vma, Page)> = Vec::new();
        for (n, page) in &self.pages {
            let start = Addr(n * PAGE);
            let end = Addr((n + 1) * PAGE);
            match vmas.last_mut() {
                Some((vma, last)) if vma.range.end == start && joins(last, page) => {
                    vma.range.end = end;
                    *last = *page;
                }
                _ => {
                    let vma = Vma {
                        range: Range { start, end },
                        perms: page.perms,
                        offset: page.offset,
                        file: page.file,
                    };
                    vmas.push((vma, *page));
                }
            }
        }
        vmas.into_iter().map(|(vma, _)| vma).collect()
    }

    /// What maps shows in one range.
    pub fn vmas_in(&self, range: Range) -> Vec<Vma> {
        let mut only = self.clone();
        only.pages.retain(|n, _| range.contains(Addr(n * PAGE)));
        only.vmas()
    }
}

fn joins(a: &Page, b: &Page) -> bool {
    a.perms == b.perms
        && a.file == b.file
        && (a.file == FileId::ANON || a.offset + PAGE == b.offset)
}
