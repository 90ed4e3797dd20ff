//! Spaces that threads change while nobody records their calls: what of it is drift, what recorded
//! calls do to memory that the model does not know, and what is told after the window.

use maptrail_replay::check::{Verify, verify};
use maptrail_replay::leaks::{Leaks, Options, leaks};
use maptrail_replay::maps_at::maps_at;
use maptrail_replay::usage::usage;
use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{
    Body, LookCause, Origin, Outcome, PageRun, Residency, RssSample, SpaceEnd, Vma,
};
use maptrail_tracelog::types::{Addr, Nanos, PAGE, Range, Stamp, ThreadIx, Tid};

use crate::effects::judge;
use crate::log::{
    Log, MAIN, MAP_ANONYMOUS, MAP_PRIVATE, MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, RW,
    START_BRK, T0, range, vma,
};

const A: u64 = 0x10_0000;
const B: u64 = 0x20_0000;
const C: u64 = 0x30_0000;
const HIDDEN: Tid = Tid(666);

fn attached(vmas: &[Vma]) -> Log {
    let mut log = Log::empty();
    log.start(MAIN, Origin::Attach, vmas);
    log.take_up(T0, Tid(100));
    log
}

fn sizes(found: &Verify) -> (u64, u64) {
    (found.drift_bytes / PAGE, found.untraced_bytes / PAGE)
}

#[test]
fn a_difference_is_untraced_only_if_a_thread_ran_untraced() {
    let told = |since: u64, ran_ns: Option<Option<u64>>| {
        let mut log = attached(&[vma(range(A, 8), "rw-p")]);
        log.mmap(B, 4);
        log.wait_until(Nanos(1_000_000));
        if let Some(ran_ns) = ran_ns {
            log.untraced(HIDDEN, Nanos(since), ran_ns);
        }
        // One page of either side is gone, one has other permissions, and something has come.
        log.checkpoint(&[
            vma(range(A, 1), "r--p"),
            vma(range(A + 2 * PAGE, 6), "rw-p"),
            vma(range(B + PAGE, 3), "rw-p"),
            vma(range(C, 5), "rw-s"),
        ]);
        judge(&log)
    };
    let found = told(0, Some(Some(5)));
    assert_eq!(sizes(&found), (0, 8), "{found:#?}");
    let space = &found.spaces[0];
    assert_eq!((space.untraced_bytes, space.worst_ns), (8 * PAGE, None));
    assert!(space.missing.is_empty() && space.extra.is_empty());
    let sides: Vec<_> = (space.untraced.iter())
        .map(|r| (r.start, r.kernel.is_some(), r.model.is_some()))
        .collect();
    assert_eq!(
        sides,
        [
            (Addr(A), true, true),
            (Addr(A + PAGE), false, true),
            (Addr(B), false, true),
            (Addr(C), true, false),
        ]
    );
    let thread = &space.untraced_threads[0];
    assert_eq!((thread.tid, thread.ran), (HIDDEN, Some(Nanos(5))));
    assert_eq!(
        sizes(&told(500_000, Some(None))),
        (0, 8),
        "nobody knows how long"
    );
    assert_eq!(sizes(&told(0, Some(Some(0)))), (8, 0), "it made no call");
    assert_eq!(
        sizes(&told(2_000_000, Some(None))),
        (8, 0),
        "it began later"
    );
    assert_eq!(sizes(&told(0, None)), (8, 0));
}

#[test]
fn what_was_mapped_since_all_threads_are_followed_is_verified_as_ever() {
    let mut log = attached(&[]);
    log.mmap(A, 2);
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    let overlapping = log.begin(T0, Call::Mmap, &[0, PAGE, RW, flags, u64::MAX, 0]);
    log.untraced(HIDDEN, Nanos(0), Some(7));
    log.take_up(ThreadIx(1), HIDDEN);
    log.mmap(B, 4);
    log.finish(overlapping, Outcome::Returned(C as i64));
    log.look(LookCause::Race, Stamp(0), range(C + PAGE, 1), &[]);
    // A may have gone before, and so may C: its call had begun. Nobody but recorded threads was there
    // to take from B, and to map next to C after the look.
    log.checkpoint(&[vma(range(B, 3), "rw-p"), vma(range(C + PAGE, 1), "rw-p")]);
    let found = judge(&log);
    assert_eq!(sizes(&found), (2, 3), "{found:#?}");
    // Were it never taken up, anything could have been its doing.
    log.untraced(Tid(667), Nanos(0), None);
    log.checkpoint(&[]);
    assert_eq!(sizes(&judge(&log)).0, 0);
}

fn shown(log: &Log) -> Vec<(Range, Stamp)> {
    let (maps, world) = maps_at(&mut log.source(), None, None).expect("memory reads");
    world.spaces().for_each(|space| space.assert_valid());
    let regions = maps.iter().flat_map(|maps| &maps.regions);
    regions
        .map(|m| {
            (
                m.region.range,
                m.birth.map_or(Stamp(0), |birth| birth.stamp),
            )
        })
        .collect()
}

#[test]
fn memory_that_the_model_does_not_know_arrives_when_it_is_moved() {
    let moved = |args: &[u64], to: u64| {
        let mut log = attached(&[vma(range(A, 1), "rw-p")]);
        let born = log.call(Call::Mremap, args, to);
        let shown = shown(&log);
        let of_call = shown.into_iter().filter(|(_, stamp)| *stamp == born);
        of_call.map(|(range, _)| range).collect::<Vec<_>>()
    };
    let (fixed, keep) = (MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_DONTUNMAP);
    for (what, args, to, arrives) in [
        (
            "moved",
            [B, 4 * PAGE, 4 * PAGE, fixed, C],
            C,
            Some(range(C, 4)),
        ),
        (
            "over what is known",
            [B, 4 * PAGE, 4 * PAGE, fixed, A],
            A,
            Some(range(A, 4)),
        ),
        (
            "cut",
            [B, 4 * PAGE, 2 * PAGE, fixed, C],
            C,
            Some(range(C, 2)),
        ),
        ("cut in place", [B, 4 * PAGE, 2 * PAGE, 1, 0], B, None),
        (
            "grown in place",
            [B, 4 * PAGE, 6 * PAGE, 1, 0],
            B,
            Some(range(B + 4 * PAGE, 2)),
        ),
        (
            "kept",
            [B, 4 * PAGE, 4 * PAGE, fixed | keep, C],
            C,
            Some(range(C, 4)),
        ),
        ("mapped twice", [B, 0, 3 * PAGE, 1, 0], C, Some(range(C, 3))),
    ] {
        assert_eq!(moved(&args, to), Vec::from_iter(arrives), "{what}");
    }
    // Old and new pages alike are the call's, whether or not they are one region.
    let grown = moved(&[B, 4 * PAGE, 6 * PAGE, 1, 0], C);
    assert_eq!(grown.iter().map(|range| range.len()).sum::<u64>(), 6 * PAGE);
    // Half of it is known: that was one mapping, so the rest was there as well.
    let half = moved(&[A, 3 * PAGE, 5 * PAGE, 1, 0], C);
    assert_eq!(half.iter().map(|range| range.len()).sum::<u64>(), 4 * PAGE);
}

#[test]
fn calls_on_unknown_memory_change_nothing_else() {
    let known = [vma(range(A, 1), "rw-p")];
    let mut log = attached(&known);
    log.munmap(B, 4);
    log.call(Call::Mprotect, &[B, 4 * PAGE, 1], 0);
    log.call(Call::Shmdt, &[B], 0);
    log.call(Call::IoDestroy, &[B], 0);
    log.call(Call::Brk, &[START_BRK + 4 * PAGE], START_BRK + 4 * PAGE);
    log.call(Call::Brk, &[START_BRK], START_BRK);
    log.checkpoint(&known);
    assert_eq!(sizes(&judge(&log)), (0, 0));
    assert_eq!(shown(&log), [(range(A, 1), Stamp(0))]);
}

#[test]
fn a_heap_that_the_log_does_not_know_takes_nothing_away() {
    let mut log = Log::empty();
    log.record(Body::SpaceStart {
        space: MAIN,
        pid: maptrail_tracelog::types::Pid(100),
        origin: Origin::Attach,
        start_brk: Addr(0),
    });
    log.checkpoint(&[vma(range(A, 1), "rw-p")]);
    log.call(Call::Brk, &[B], B);
    let born = log.call(Call::Brk, &[B + 2 * PAGE], B + 2 * PAGE);
    assert_eq!(shown(&log), [(range(A, 1), Stamp(0)), (range(B, 2), born)]);
}

#[test]
fn what_is_looked_at_after_the_window_counts() {
    let mut log = attached(&[vma(range(A, 8), "rw-p")]);
    let rss = |pages: u64| RssSample {
        anon: pages * PAGE,
        ..RssSample::default()
    };
    log.record(Body::Rss(MAIN, rss(8)));
    log.mmap(B, 4);
    let grown = [
        vma(range(A, 8), "rw-p"),
        vma(range(B, 4), "rw-p"),
        vma(range(C, 5), "---p"),
    ];
    log.untraced(HIDDEN, Nanos(0), Some(1));
    log.checkpoint(&grown);
    let ends_at = log.now().0 + log.tick_ns;
    log.record(Body::SpaceEnd {
        space: MAIN,
        how: SpaceEnd::Window,
    });
    log.wait_until(Nanos(10 * ends_at));
    log.record(Body::Residency(Residency {
        space: MAIN,
        looked_at: vec![range(B, 4)],
        resident: vec![PageRun {
            gap: B / PAGE,
            pages: 3,
        }],
        swapped: vec![],
    }));
    log.record(Body::Rss(MAIN, rss(11)));
    let (found, _): (Leaks, _) =
        leaks(&mut log.source(), Options::default()).expect("memory reads");
    let row = &found.rows[0];
    assert_eq!(
        (row.held_bytes, row.looked_at_bytes, row.resident_bytes),
        (4 * PAGE, 4 * PAGE, Some(3 * PAGE))
    );
    let growth = found.growth;
    assert_eq!(
        (growth.resident_bytes, growth.explained_resident_bytes),
        (3 * PAGE as i64, 3 * PAGE)
    );
    // What came unseen is growth as well.
    assert_eq!(
        (growth.reserved_bytes, growth.committed_bytes),
        (9 * PAGE as i64, 4 * PAGE as i64)
    );
    let (usage, _) = usage(&mut log.source(), 10, 1).expect("memory reads");
    assert_eq!(usage.peak.resident_bytes, Some(11 * PAGE));
    let (maps, world) = maps_at(&mut log.source(), None, None).expect("memory reads");
    assert_eq!((maps.len(), maps[0].at), (1, Nanos(ends_at)));
    let ended = world.space_info(MAIN).and_then(|info| info.end);
    assert_eq!(ended, Some((Nanos(ends_at), SpaceEnd::Window)));
}

#[test]
fn memory_from_before_that_goes_is_given_back_by_nobody() {
    let mut log = attached(&[vma(range(A, 8), "rw-p")]);
    log.munmap(A, 8);
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    log.call(Call::Mmap, &[A, 2 * PAGE, RW, flags, u64::MAX, 0], A);
    log.checkpoint(&[vma(range(A, 2), "rw-p")]);
    let (found, _) = leaks(&mut log.source(), Options::default()).expect("memory reads");
    assert_eq!(found.rows.len(), 1, "{found:#?}");
    assert_eq!(
        (found.rows[0].mapped_bytes, found.rows[0].released_bytes),
        (2 * PAGE, 0)
    );
    assert_eq!(found.growth.reserved_bytes, -6 * PAGE as i64);
    assert_eq!(
        verify(&mut log.source())
            .expect("memory reads")
            .0
            .drift_bytes,
        0
    );
}
