//! Random sequences of calls: the model must agree with the naive kernel on every page, its
//! attributes and its birth.

use maptrail_replay::check::verify;
use maptrail_replay::maps_at::maps_at;
use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{LookCause, Outcome};
use maptrail_tracelog::types::{Addr, FileId, Nanos, PAGE, Perms, Stamp, Tid};
use proptest::prelude::*;

use crate::kernel::{Kernel, Page};
use crate::log::{
    ENOMEM, Log, MAIN, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, MREMAP_DONTUNMAP,
    MREMAP_FIXED, MREMAP_MAYMOVE, START_BRK, T0, T1, range,
};

/// The arena that calls act in.
const BASE: u64 = 0x1000_0000;
const ARENA: u64 = 40;
const FILE: FileId = FileId(1);

#[derive(Clone, Debug)]
enum Act {
    Mmap {
        at: u64,
        pages: u64,
        prot: u64,
        shared: bool,
        file: bool,
        fixed: bool,
    },
    Munmap {
        at: u64,
        pages: u64,
        bytes_less: u64,
    },
    Mprotect {
        at: u64,
        pages: u64,
        prot: u64,
    },
    Resize {
        at: u64,
        pages: u64,
        new_pages: u64,
    },
    MoveTo {
        at: u64,
        pages: u64,
        new_pages: u64,
        to: u64,
        keep: bool,
    },
    Duplicate {
        at: u64,
        new_pages: u64,
    },
    Brk {
        bytes: u64,
    },
    Checkpoint,
}

fn act() -> impl Strategy<Value = Act> {
    let at = 0..ARENA;
    let pages = 1..9u64;
    prop_oneof![
        4 => (at.clone(), pages.clone(), 0..8u64, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(at, pages, prot, shared, file, fixed)| {
                Act::Mmap { at, pages, prot, shared, file, fixed }
            }),
        3 => (at.clone(), pages.clone(), 0..PAGE)
            .prop_map(|(at, pages, bytes_less)| Act::Munmap { at, pages, bytes_less }),
        2 => (at.clone(), pages.clone(), 0..8u64)
            .prop_map(|(at, pages, prot)| Act::Mprotect { at, pages, prot }),
        2 => (at.clone(), pages.clone(), pages.clone())
            .prop_map(|(at, pages, new_pages)| Act::Resize { at, pages, new_pages }),
        3 => (at.clone(), pages.clone(), pages.clone(), at.clone(), any::<bool>())
            .prop_map(|(at, pages, new_pages, to, keep)| {
                Act::MoveTo { at, pages, new_pages, to, keep }
            }),
        1 => (at, pages).prop_map(|(at, new_pages)| Act::Duplicate { at, new_pages }),
        2 => (0..12 * PAGE).prop_map(|bytes| Act::Brk { bytes }),
        1 => Just(Act::Checkpoint),
    ]
}

/// Runs what the kernel would accept, on the naive kernel and into the log.
struct Run {
    log: Log,
    kernel: Kernel,
}

impl Run {
    fn new() -> Run {
        let mut log = Log::empty();
        log.file(FILE, 77, "/data");
        log.exec(MAIN, &[]);
        Run {
            log,
            kernel: Kernel::default(),
        }
    }

    /// The first place in the arena, from `hint` on, where so many pages are free.
    fn place(&self, hint: u64, pages: u64) -> Option<u64> {
        (hint..ARENA)
            .chain(0..hint)
            .map(|page| BASE + page * PAGE)
            .find(|start| self.kernel.is_free(*start, pages))
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Mmap {
                at,
                pages,
                prot,
                shared,
                file,
                fixed,
            } => {
                self.mmap(at, pages, prot, shared, file, fixed);
            }
            Act::Munmap {
                at,
                pages,
                bytes_less,
            } => {
                let start = BASE + at * PAGE;
                let len = pages * PAGE - bytes_less;
                self.log.call(Call::Munmap, &[start, len], 0);
                self.kernel.unmap(start, pages);
            }
            Act::Mprotect { at, pages, prot } => self.mprotect(BASE + at * PAGE, pages, prot),
            Act::Resize {
                at,
                pages,
                new_pages,
            } => {
                self.resize(BASE + at * PAGE, pages, new_pages);
            }
            Act::MoveTo {
                at,
                pages,
                new_pages,
                to,
                keep,
            } => {
                self.move_to(BASE + at * PAGE, pages, new_pages, BASE + to * PAGE, keep);
            }
            Act::Duplicate { at, new_pages } => self.duplicate(BASE + at * PAGE, new_pages),
            Act::Brk { bytes } => {
                let end = START_BRK + bytes;
                let stamp = self.log.call(Call::Brk, &[end], end);
                self.kernel.set_brk(end, stamp);
            }
            Act::Checkpoint => self.log.checkpoint(&self.kernel.vmas()),
        }
    }

    fn mmap(&mut self, at: u64, pages: u64, prot: u64, shared: bool, file: bool, fixed: bool) {
        let offset = if file { (at + 3) * PAGE } else { 0 };
        let start = if fixed {
            BASE + at * PAGE
        } else {
            let Some(start) = self.place(at, pages) else {
                return;
            };
            start
        };
        // Shared anonymous memory has an inode of its own: leave that to its own test.
        let shared = shared && file;
        let flags = if shared { MAP_SHARED } else { MAP_PRIVATE }
            | if file { 0 } else { MAP_ANONYMOUS }
            | if fixed { MAP_FIXED } else { 0 };
        let hint = if fixed { start } else { 0 };
        let args = [hint, pages * PAGE - 7, prot, flags, 3, offset];
        let file = if file { FILE } else { FileId::ANON };
        let born = self.log.mmap_file(&args, start, file);
        let perms = Perms::from_prot(prot, shared);
        self.kernel.map(
            start,
            pages,
            Page {
                perms,
                file,
                offset,
                born,
            },
        );
    }

    fn mprotect(&mut self, start: u64, pages: u64, prot: u64) {
        let begun = self
            .log
            .begin(T0, Call::Mprotect, &[start, pages * PAGE, prot]);
        if self.kernel.protect(start, pages, prot) {
            self.log.finish(begun, Outcome::Returned(0));
        } else {
            let exit = self.log.finish(begun, Outcome::Returned(-ENOMEM));
            let range = range(start, pages);
            let seen = self.kernel.vmas_in(range);
            self.log.look(LookCause::PartialFailure, exit, range, &seen);
        }
    }

    fn resize(&mut self, start: u64, pages: u64, new_pages: u64) {
        if !self.kernel.is_one(start, pages) {
            return;
        }
        let args = [start, pages * PAGE, new_pages * PAGE, MREMAP_MAYMOVE];
        let end = start + pages * PAGE;
        if new_pages <= pages {
            self.log.call(Call::Mremap, &args, start);
            self.kernel
                .unmap(start + new_pages * PAGE, pages - new_pages);
        } else if self.kernel.is_free(end, new_pages - pages) {
            let born = self.log.call(Call::Mremap, &args, start);
            let page = self.kernel.continued(end, born);
            self.kernel.map(end, new_pages - pages, page);
        } else if let Some(to) = self.place(0, new_pages) {
            let born = self.log.call(Call::Mremap, &args, to);
            self.moved(start, pages, new_pages, to, born);
        }
    }

    fn moved(&mut self, start: u64, pages: u64, new_pages: u64, to: u64, born: Stamp) {
        let taken = self.kernel.take(start, pages);
        let kept = &taken[..pages.min(new_pages) as usize];
        self.kernel.put(to, kept);
        if new_pages > pages {
            let end = to + pages * PAGE;
            let page = self.kernel.continued(end, born);
            self.kernel.map(end, new_pages - pages, page);
        }
    }

    fn move_to(&mut self, start: u64, pages: u64, new_pages: u64, to: u64, keep: bool) {
        let apart = start + pages * PAGE <= to || to + new_pages * PAGE <= start;
        if !apart {
            return;
        }
        // Several mappings, with holes, may move at once if the size stays the same.
        let several = !self.kernel.is_one(start, pages);
        let new_pages = if several || keep { pages } else { new_pages };
        let apart = start + pages * PAGE <= to || to + new_pages * PAGE <= start;
        if !apart || !self.kernel.is_full(start, 1) {
            return;
        }
        let mut flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        if keep {
            flags |= MREMAP_DONTUNMAP;
        }
        let args = [start, pages * PAGE, new_pages * PAGE, flags, to];
        let born = self.log.call(Call::Mremap, &args, to);
        let has_holes = !self.kernel.is_full(start, pages);
        if !has_holes {
            self.kernel.unmap(to, new_pages);
        }
        if keep {
            let copied = self.kernel.clone().take(start, pages);
            let born_here: Vec<Option<Page>> = copied
                .iter()
                .map(|page| page.map(|page| Page { born, ..page }))
                .collect();
            self.kernel.put(to, &born_here);
        } else {
            self.moved(start, pages, new_pages, to, born);
        }
    }

    fn duplicate(&mut self, start: u64, new_pages: u64) {
        let Some(page) = self.kernel.pages.get(&(start / PAGE)).copied() else {
            return;
        };
        if !page.perms.shared() || !self.kernel.is_one(start, 1) {
            return;
        }
        let Some(to) = self.place(0, new_pages) else {
            return;
        };
        // To more pages than the one mapping has would mean to join several: not one call's doing.
        let whole = (1..=new_pages).take_while(|n| self.kernel.is_one(start, *n));
        let pages = whole.last().unwrap_or(1);
        let args = [start, 0, pages * PAGE, MREMAP_MAYMOVE];
        let born = self.log.call(Call::Mremap, &args, to);
        self.kernel.map(to, pages, Page { born, ..page });
    }

    /// Compares page by page.
    fn check(mut self, chunk_events: usize) {
        self.log.checkpoint(&self.kernel.vmas());
        let mut source = self.log.source_in_chunks(chunk_events);
        let (found, _) = verify(&mut source).expect("memory reads");
        assert_eq!(found.drift_bytes, 0, "{found:#?}");
        let (maps, world) = maps_at(&mut source, None, None).expect("memory reads");
        world.spaces().for_each(|space| space.assert_valid());
        let mut model = Kernel::default();
        for mapped in maps.iter().flat_map(|space| &space.regions) {
            let region = mapped.region;
            let born = mapped.birth.map_or(Stamp(0), |birth| birth.stamp);
            let page = Page {
                perms: region.perms,
                file: region.file,
                offset: region.offset,
                born,
            };
            model.map(region.range.start.0, region.len() / PAGE, page);
        }
        assert_eq!(model.pages, self.kernel.pages);
        let end = maps.first().map(|space| space.heap.end);
        assert_eq!(end, Some(Addr(self.kernel.brk)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_model_agrees_with_a_page_array(
        acts in prop::collection::vec(act(), 1..60),
        chunk_events in 1..20usize,
    ) {
        let mut run = Run::new();
        for act in &acts {
            run.act(act);
        }
        run.check(chunk_events);
    }

    /// Another thread acts as well, and nobody records it, up to where it is taken up or to the end.
    #[test]
    fn what_is_done_unseen_is_never_drift(
        acts in prop::collection::vec((act(), any::<bool>()), 1..60),
        later in prop::collection::vec(act(), 0..30),
        chunk_events in 1..20usize,
    ) {
        let hidden = Tid(666);
        let mut run = Run::new();
        for (act, is_seen) in &acts {
            let before = run.log.calls();
            run.act(act);
            if !is_seen {
                run.log.forget_from(before);
            }
        }
        run.log.untraced(hidden, Nanos(0), Some(1));
        run.log.take_up(T1, hidden);
        for act in &later {
            run.act(act);
        }
        run.log.checkpoint(&run.kernel.vmas());
        let mut source = run.log.source_in_chunks(chunk_events);
        let (found, world) = verify(&mut source).expect("memory reads");
        prop_assert_eq!(found.drift_bytes, 0, "{:#?}", found);
        world.spaces().for_each(|space| space.assert_valid());
    }
}
