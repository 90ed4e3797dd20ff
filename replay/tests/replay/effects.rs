//! What single calls and records do to a space, in effect order.

use maptrail_replay::calls;
use maptrail_replay::check::{Verify, verify};
use maptrail_replay::files::Files;
use maptrail_replay::leaks::{Options, leaks};
use maptrail_replay::maps_at::{Mapped, maps_at};
use maptrail_replay::region::BirthId;
use maptrail_replay::space::Space;
use maptrail_replay::timeline::{ChunkList, Source, Step, Timeline};
use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{CheckpointReason, InFlight, LookCause, Origin, Outcome, Vma};
use maptrail_tracelog::types::{Addr, FileId, PAGE, Range, SpaceId, Stamp};
use maptrail_tracelog::writer::Chunk;

use crate::log::{
    ENOMEM, Log, MAIN, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MREMAP_DONTUNMAP, MREMAP_FIXED,
    MREMAP_MAYMOVE, RW, START_BRK, T0, T1, range, vma,
};

const A: u64 = 0x10_0000;
const B: u64 = 0x20_0000;
const STACK: FileId = FileId(9);

pub fn judge(log: &Log) -> Verify {
    let (found, _) = verify(&mut log.source()).expect("memory reads");
    // However the log is cut into chunks, the answer is the same.
    for events in [1, 2, 3] {
        let (again, _) = verify(&mut log.source_in_chunks(events)).expect("memory reads");
        assert_eq!(again, found, "cut into chunks of {events}");
    }
    found
}

fn regions(log: &Log, space: SpaceId) -> Vec<Mapped> {
    let (maps, _) = maps_at(&mut log.source(), None, Some(space)).expect("memory reads");
    maps.into_iter().flat_map(|maps| maps.regions).collect()
}

fn shown(log: &Log) -> Vec<(Range, Stamp)> {
    let born = |m: &Mapped| m.birth.map_or(Stamp(0), |b| b.stamp);
    regions(log, MAIN)
        .iter()
        .map(|m| (m.region.range, born(m)))
        .collect()
}

/// Thread 0 unmaps A, the kernel hands A to thread 1, and thread 1's exit is seen first.
fn handed_over() -> (Log, Stamp) {
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    let unmap = log.begin(T0, Call::Munmap, &[A, 4 * PAGE]);
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    let map = log.begin(T1, Call::Mmap, &[0, 4 * PAGE, RW, flags, u64::MAX, 0]);
    let born = log.finish(map, Outcome::Returned(A as i64));
    log.finish(unmap, Outcome::Returned(0));
    log.checkpoint(&[vma(range(A, 4), "rw-p")]);
    (log, born)
}

#[test]
fn a_range_handed_from_thread_to_thread_is_the_second_ones() {
    let (log, born) = handed_over();
    assert_eq!(judge(&log).drift_bytes, 0);
    assert_eq!(shown(&log), [(range(A, 4), born)]);
}

#[test]
fn in_order_of_arrival_the_same_log_would_lose_the_range() {
    let (log, _) = handed_over();
    let mut chunk = Chunk::default();
    let mut source = log.source();
    assert!(source.next_chunk(&mut chunk).expect("memory reads"));
    let files = Files::default();
    let mut space = Space::new(MAIN, Addr(START_BRK));
    let mut deltas = Vec::new();
    for event in &chunk.events {
        for op in calls::at_entry(event, &space).into_iter().flatten() {
            space.apply(&op, &files, &mut deltas);
        }
        if let Some(op) = calls::at_exit(event, BirthId::PRE_EXISTING, &files) {
            space.apply(&op, &files, &mut deltas);
        }
    }
    assert_eq!(space.regions().count(), 0);
}

#[test]
fn nothing_is_held_back_past_the_low_water_mark() {
    let (log, _) = handed_over();
    let mut source: ChunkList = log.source_in_chunks(1);
    let mut timeline = Timeline::new();
    let mut chunk = Chunk::default();
    let mut told = Vec::new();
    let mut most = 0;
    while source.next_chunk(&mut chunk).expect("memory reads") {
        timeline.feed(&mut chunk, &mut |step| {
            told.push(match step {
                Step::Entry(event) => event.entry,
                Step::Exit(event) => event.exit,
                Step::Record(record, _) => record.stamp,
            });
            true
        });
        most = most.max(timeline.waiting());
    }
    assert_eq!(timeline.waiting(), 0);
    assert!(most > 0, "the second thread's mapping had to wait");
    assert!(told.is_sorted(), "{told:?}");
}

#[test]
fn a_forked_copy_keeps_its_parents_births() {
    let mut log = Log::new(&[vma(range(B, 1), "r--p")]);
    let born = log.mmap(A, 4);
    let child = SpaceId(1);
    let both = [vma(range(A, 4), "rw-p"), vma(range(B, 1), "r--p")];
    log.start(child, Origin::Fork { parent: MAIN }, &both);
    log.munmap(A, 4);
    log.checkpoint(&[vma(range(B, 1), "r--p")]);
    log.space = child;
    log.munmap(A + PAGE, 1);
    let left = [
        vma(range(A, 1), "rw-p"),
        vma(range(A + 2 * PAGE, 2), "rw-p"),
        vma(range(B, 1), "r--p"),
    ];
    log.checkpoint(&left);
    let found = judge(&log);
    assert_eq!((found.drift_bytes, found.checkpoints), (0, 2));
    let births: Vec<_> = regions(&log, child)
        .iter()
        .map(|m| m.birth.map(|b| (b.stamp, b.space)))
        .collect();
    assert_eq!(births, [Some((born, MAIN)), Some((born, MAIN)), None]);
}

#[test]
fn what_fork_leaves_out_is_told_by_the_childs_maps() {
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    log.mmap(B, 4);
    let child = SpaceId(1);
    log.start(
        child,
        Origin::Fork { parent: MAIN },
        &[vma(range(B, 4), "rw-p")],
    );
    log.checkpoint_as(
        child,
        CheckpointReason::Periodic,
        &[vma(range(B, 4), "rw-p")],
        vec![],
    );
    assert_eq!(judge(&log).drift_bytes, 0);
}

#[test]
fn calls_in_flight_at_a_checkpoint_are_no_drift() {
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    log.mmap(B, 4);
    let unmap = log.begin(T0, Call::Munmap, &[A, 4 * PAGE]);
    let protect = log.begin(T1, Call::Mprotect, &[B, PAGE, 1]);
    let in_flight = [unmap, protect]
        .map(|begun| InFlight {
            thread: begun.event.thread,
            entry: begun.event.entry,
        })
        .to_vec();
    let seen = [
        vma(range(A, 4), "rw-p"),
        vma(range(B, 1), "r--p"),
        vma(range(B + PAGE, 3), "rw-p"),
    ];
    log.checkpoint_as(MAIN, CheckpointReason::Periodic, &seen, in_flight);
    log.finish(unmap, Outcome::Returned(0));
    log.finish(protect, Outcome::Returned(0));
    let found = judge(&log);
    assert_eq!((found.drift_bytes, found.settled), (0, 2), "{found:#?}");
}

#[test]
fn verify_notices_an_event_that_is_missing() {
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    let gone = log.mmap(B, 3);
    log.checkpoint(&[vma(range(A, 4), "rw-p"), vma(range(B, 3), "rw-p")]);
    assert_eq!(judge(&log).drift_bytes, 0);
    log.forget(gone);
    let found = judge(&log);
    assert_eq!(found.drift_bytes, 3 * PAGE);
    let [space] = &found.spaces[..] else {
        panic!("one space: {found:#?}");
    };
    let [missing] = &space.missing[..] else {
        panic!("one range: {space:#?}");
    };
    assert_eq!((missing.start, missing.end), (Addr(B), Addr(B + 3 * PAGE)));
    assert_eq!(missing.model, None);
}

#[test]
fn verify_counts_bytes_that_differ_in_an_attribute() {
    let mut log = Log::new(&[vma(range(A, 4), "rw-p"), vma(range(B, 2), "rw-p")]);
    let half = [
        vma(range(A, 3), "rw-p"),
        vma(range(A + 3 * PAGE, 1), "r--p"),
    ];
    log.checkpoint(&half);
    let found = judge(&log);
    assert_eq!(found.drift_bytes, 3 * PAGE);
    assert_eq!(found.spaces[0].missing.len(), 1, "other permissions");
    assert_eq!(found.spaces[0].extra.len(), 1, "not there any more");
}

#[test]
fn stacks_that_the_kernel_grew_are_no_drift() {
    let mut log = Log::empty();
    log.file(STACK, 0, "[stack]");
    let stack = |range, perms| Vma {
        file: STACK,
        ..vma(range, perms)
    };
    log.exec(MAIN, &[stack(range(B, 4), "rw-p")]);
    let grown = range(B - 8 * PAGE, 12);
    log.checkpoint(&[stack(grown, "rw-p")]);
    let found = judge(&log);
    assert_eq!((found.drift_bytes, found.kernel_bytes), (0, 8 * PAGE));
    // A call that succeeds on the grown part proves that it is there.
    log.call(Call::Mprotect, &[B - 3 * PAGE, PAGE, 1], 0);
    // And one that cuts a piece out of it leaves what is below.
    log.munmap(B - 6 * PAGE, 1);
    log.checkpoint(&[
        stack(range(B - 8 * PAGE, 2), "rw-p"),
        stack(range(B - 5 * PAGE, 2), "rw-p"),
        stack(range(B - 3 * PAGE, 1), "r--p"),
        stack(range(B - 2 * PAGE, 6), "rw-p"),
    ]);
    let found = judge(&log);
    assert_eq!(found.drift_bytes, 0, "{found:#?}");
    // Memory elsewhere is drift all the same.
    log.checkpoint(&[stack(range(B, 4), "rw-p"), vma(range(A, 1), "rw-p")]);
    assert_ne!(judge(&log).drift_bytes, 0);
}

/// A stack of four pages at B, as maps shows it, that the kernel then grows by eight pages.
fn with_a_stack() -> Log {
    let mut log = Log::empty();
    log.file(STACK, 0, "[stack]");
    let stack = Vma {
        file: STACK,
        ..vma(range(B, 4), "rw-p")
    };
    log.exec(MAIN, &[stack]);
    log
}

#[test]
fn a_mapping_over_a_grown_stack_leaves_what_is_below() {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    // In the part that the kernel grew, and at the lowest page that the model has.
    for at in [B - 5 * PAGE, B] {
        let mut log = with_a_stack();
        log.call(Call::Mmap, &[at, PAGE, 1, flags, u64::MAX, 0], at);
        let below = (at - (B - 8 * PAGE)) / PAGE;
        log.checkpoint(&[
            vma(range(B - 8 * PAGE, below), "rw-p"),
            vma(range(at, 1), "r--p"),
            vma(range(at + PAGE, 11 - below), "rw-p"),
        ]);
        let found = judge(&log);
        assert_eq!(found.drift_bytes, 0, "at {at:x}: {found:#?}");
    }
}

#[test]
fn a_grown_stack_can_be_moved_in_pieces() {
    let piece = B - 5 * PAGE;
    let left = |to: Vma| {
        let below = vma(range(B - 8 * PAGE, 3), "rw-p");
        let above = vma(range(piece + 2 * PAGE, 7), "rw-p");
        let mut all = [to, below, above];
        all.sort_by_key(|vma| vma.range.start);
        all
    };
    // Whole, and with its second page given up.
    for pages in [2, 1] {
        let mut log = with_a_stack();
        let args = [piece, 2 * PAGE, pages * PAGE, MREMAP_MAYMOVE];
        log.call(Call::Mremap, &args, A);
        log.checkpoint(&left(vma(range(A, pages), "rw-p")));
        let found = judge(&log);
        assert_eq!(found.drift_bytes, 0, "{pages} pages: {found:#?}");
    }
    let mut log = with_a_stack();
    let flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
    log.call(Call::Mremap, &[piece, 2 * PAGE, 2 * PAGE, flags], A);
    log.checkpoint(&[
        vma(range(A, 2), "rw-p"),
        vma(range(B - 8 * PAGE, 12), "rw-p"),
    ]);
    assert_eq!(judge(&log).drift_bytes, 0, "the source stays");
    // As a destination.
    let mut log = with_a_stack();
    log.mmap(A, 2);
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    log.call(Call::Mremap, &[A, 2 * PAGE, 2 * PAGE, flags, piece], piece);
    log.checkpoint(&left(vma(range(piece, 2), "rw-p")));
    assert_eq!(judge(&log).drift_bytes, 0, "it lands there");
}

#[test]
fn a_stack_does_not_grow_over_what_was_lost() {
    const FAR: u64 = 1 << 32;
    let mut log = Log::empty();
    log.file(STACK, 0, "[stack]");
    let stack = Vma {
        file: STACK,
        ..vma(range(FAR, 4), "rw-p")
    };
    log.exec(MAIN, &[stack]);
    let lost = log.mmap(A, 4);
    log.call(Call::Mprotect, &[A, PAGE, 1], 0);
    log.munmap(A + 2 * PAGE, 1);
    log.forget(lost);
    assert_eq!(shown(&log), [(range(FAR, 4), Stamp(0))]);
    log.checkpoint(&[
        vma(range(A, 1), "r--p"),
        vma(range(A + PAGE, 1), "rw-p"),
        stack,
    ]);
    let found = judge(&log);
    assert_eq!((found.drift_bytes, found.kernel_bytes), (2 * PAGE, 0));
}

#[test]
fn attached_segments_go_by_their_address_and_offset() {
    let mut log = Log::new(&[]);
    log.file(FileId(5), 11, "/SYSV00000000 (deleted)");
    log.file(FileId(6), 12, "/SYSV00000000 (deleted)");
    let shm = |range, file, offset| Vma {
        file: FileId(file),
        offset,
        ..vma(range, "rw-s")
    };
    for (at, file) in [(A, 5), (A + 8 * PAGE, 6)] {
        let call = log.call(Call::Shmat, &[1, 0, 0], at);
        let seen = shm(range(at, 8), file, 0);
        log.look(LookCause::Acquired, call, range(at, 8), &[seen]);
    }
    // Its middle goes before the rest is detached.
    log.munmap(A + 2 * PAGE, 2);
    let before = judge_with(
        &mut log,
        &[
            shm(range(A, 2), 5, 0),
            shm(range(A + 4 * PAGE, 4), 5, 4 * PAGE),
            shm(range(A + 8 * PAGE, 8), 6, 0),
        ],
    );
    assert_eq!(before.drift_bytes, 0, "{before:#?}");
    assert!(
        shown(&log).iter().all(|(_, born)| *born != Stamp(0)),
        "born by shmat"
    );
    log.call(Call::Shmdt, &[A], 0);
    let after = judge_with(&mut log, &[shm(range(A + 8 * PAGE, 8), 6, 0)]);
    assert_eq!(after.drift_bytes, 0, "{after:#?}");
}

fn judge_with(log: &mut Log, vmas: &[Vma]) -> Verify {
    log.checkpoint(vmas);
    judge(log)
}

#[test]
fn a_ring_is_gone_after_io_destroy() {
    let mut log = Log::new(&[]);
    log.file(FileId(5), 11, "/[aio] (deleted)");
    let ring = Vma {
        file: FileId(5),
        ..vma(range(A, 2), "rw-s")
    };
    let call = log.call(Call::IoSetup, &[128, 0x7000], 0);
    log.look(LookCause::Acquired, call, range(A, 2), &[ring]);
    assert_eq!(judge_with(&mut log, &[ring]).drift_bytes, 0);
    log.call(Call::IoDestroy, &[A], 0);
    assert_eq!(judge_with(&mut log, &[]).drift_bytes, 0);
}

#[test]
fn heap_pages_are_born_by_their_brk() {
    let mut log = Log::new(&[]);
    log.call(Call::Brk, &[0], START_BRK);
    let first = log.call(Call::Brk, &[START_BRK + 100], START_BRK + 100);
    let second = log.call(Call::Brk, &[START_BRK + 3 * PAGE], START_BRK + 3 * PAGE);
    // Refused: the result is where the heap ends, not what was asked for.
    log.call(Call::Brk, &[START_BRK + 90 * PAGE], START_BRK + 3 * PAGE);
    log.call(Call::Brk, &[START_BRK + PAGE + 1], START_BRK + PAGE + 1);
    assert_eq!(
        shown(&log),
        [
            (range(START_BRK, 1), first),
            (range(START_BRK + PAGE, 1), second)
        ]
    );
}

#[test]
fn a_failed_call_acts_only_as_far_as_the_recorder_saw() {
    let mut log = Log::new(&[]);
    let born = log.mmap(A, 4);
    log.mmap(B, 4);
    let failed = log.call_of(
        T0,
        Call::Mremap,
        &[A, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, B],
        -ENOMEM,
    );
    log.look(LookCause::PartialFailure, failed, range(B, 4), &[]);
    log.checkpoint(&[vma(range(A, 4), "rw-p")]);
    assert_eq!(judge(&log).drift_bytes, 0);
    assert_eq!(shown(&log), [(range(A, 4), born)]);
}

#[test]
fn an_munmap_that_was_cut_off_has_released_nothing() {
    // The recorder did not wait for the call to end, and then found what is still there.
    for (names_entry, left) in [(true, 4), (false, 4), (true, 1), (true, 0)] {
        let mut log = Log::new(&[vma(range(B, 2), "r--p")]);
        let born = log.mmap(A, 4);
        log.call(Call::Mprotect, &[A + PAGE, 3 * PAGE, 1], 0);
        let begun = log.begin(T0, Call::Munmap, &[A, 4 * PAGE]);
        let exit = log.finish(begun, Outcome::Returned(0));
        let call = if names_entry { begun.event.entry } else { exit };
        // Another thread's birth has the free place in the table.
        let other = log.call_of(T1, Call::Mmap, &[0, PAGE, RW, 0x22], A as i64 - 0x8000);
        let mut seen = vec![vma(range(A, 1), "rw-p"), vma(range(A + PAGE, 3), "r--p")];
        seen.truncate(left);
        log.look(LookCause::Race, call, range(A, 4), &seen);
        let mut all = vec![vma(range(A - 0x8000, 1), "rw-p")];
        all.extend(&seen);
        all.push(vma(range(B, 2), "r--p"));
        log.checkpoint(&all);
        assert_eq!(judge(&log).drift_bytes, 0);
        let mut expected = vec![(range(A - 0x8000, 1), other)];
        expected.extend(seen.iter().map(|vma| (vma.range, born)));
        expected.push((range(B, 2), Stamp(0)));
        assert_eq!(shown(&log), expected);
        let (found, _) = leaks(&mut log.source(), Options::default()).expect("memory reads");
        let held: u64 = seen.iter().map(|vma| vma.range.len()).sum();
        let row = &found.rows[0];
        assert_eq!((row.mapped_calls, row.mapped_bytes), (2, 5 * PAGE));
        assert_eq!(row.held_bytes, held + PAGE);
        assert_eq!(row.released_bytes, 4 * PAGE - held);
    }
}

#[test]
fn huge_pages_are_mapped_whole() {
    const MAP_HUGETLB: u64 = 0x4_0000;
    let mut log = Log::new(&[]);
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    let huge = 0x4000_0000;
    log.call(Call::Mmap, &[0, PAGE, RW, flags, u64::MAX, 0], huge);
    log.checkpoint(&[vma(range(huge, 512), "rw-p")]);
    assert_eq!(judge(&log).drift_bytes, 0);
}

#[test]
fn spaces_take_room_for_what_they_hold_whatever_their_ids() {
    let mut log = Log::new(&[]);
    let far = SpaceId(u32::MAX - 1000);
    for i in 0..100 {
        log.exec(SpaceId(i << 16 | 1), &[]);
    }
    log.exec(far, &[vma(range(A, 1), "rw-p")]);
    assert_eq!(regions(&log, far).len(), 1);
}

#[test]
fn nonsense_from_a_damaged_log_does_no_harm() {
    let mut log = Log::new(&[vma(range(A, 4), "rw-p")]);
    let far = u64::MAX - PAGE + 1;
    let moving = MREMAP_MAYMOVE;
    for value in [0, A, far, u64::MAX, 1 << 63] {
        log.call(
            Call::Mmap,
            &[value, value, value, value, value, value],
            value,
        );
        log.call(Call::Munmap, &[value, value], 0);
        log.call(Call::Mremap, &[A, value, PAGE, moving], value);
        log.call(Call::Mremap, &[value, PAGE, value, moving], value);
        log.call(Call::Mremap, &[A, 0, value, moving], far);
        log.call(Call::Mprotect, &[value, value, u64::MAX], 0);
        log.call(Call::Brk, &[value], value);
        log.call(Call::Shmdt, &[value], 0);
        log.call(Call::IoDestroy, &[value], 0);
        let bad = Range {
            start: Addr(value),
            end: Addr(value.wrapping_add(PAGE)),
        };
        log.look(LookCause::Acquired, Stamp(3), bad, &[vma(bad, "rw-p")]);
        log.checkpoint(&[vma(bad, "rw-p"), vma(range(A, 1), "rwxp"), vma(bad, "r--s")]);
    }
    let found = judge(&log);
    assert_eq!(found.checkpoints, 5);
}
