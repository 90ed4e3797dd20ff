//! Calls that nobody saw end, judged by the next checkpoint of their space.

use maptrail_replay::check::{Verify, verify};
use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{Outcome, Vma};
use maptrail_tracelog::types::{FileId, PAGE};

use crate::effects::judge;
use crate::log::{
    Log, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MREMAP_MAYMOVE, RW, T0, T1, range, vma,
};

const A: u64 = 0x10_0000;
const B: u64 = 0x20_0000;

fn unfinished(call: Call, args: &[u64], after: &[Vma]) -> Verify {
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    let begun = log.begin(T1, call, args);
    log.finish(begun, Outcome::Unfinished);
    log.checkpoint(after);
    judge(&log)
}

#[test]
fn an_unfinished_call_is_settled_by_the_next_checkpoint() {
    let a = vma(range(A, 4), "rw-p");
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    let map = [0, 3 * PAGE, RW, flags, u64::MAX, 0];
    let b = vma(range(B, 3), "rw-p");
    let moved = [A, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE];
    let cases: [(&str, Call, &[u64], Vec<Vma>); 6] = [
        ("munmap acted", Call::Munmap, &[A, 4 * PAGE], vec![]),
        ("munmap did not", Call::Munmap, &[A, 4 * PAGE], vec![a]),
        ("mmap acted", Call::Mmap, &map, vec![a, b]),
        ("mmap did not", Call::Mmap, &map, vec![a]),
        (
            "mremap moved",
            Call::Mremap,
            &moved,
            vec![vma(range(B, 4), "rw-p")],
        ),
        (
            "mprotect acted",
            Call::Mprotect,
            &[A, 4 * PAGE, 1],
            vec![vma(range(A, 4), "r--p")],
        ),
    ];
    for (what, call, args, after) in cases {
        let found = unfinished(call, args, &after);
        assert_eq!(
            (found.drift_bytes, found.settled),
            (0, 1),
            "{what}: {found:#?}"
        );
    }
}

#[test]
fn an_unfinished_mapping_of_a_file_takes_what_the_kernel_shows() {
    let settled = |flags: u64, offset: u64, shown: &[Vma]| {
        let mut log = Log::new(&[]);
        log.file(FileId(5), 11, "/data");
        log.file(FileId(6), 12, "/dev/zero (deleted)");
        log.mmap(A, 4);
        let args = [0, 3 * PAGE, RW, flags, 3, offset];
        let begun = log.begin(T1, Call::Mmap, &args);
        log.finish(begun, Outcome::Unfinished);
        let mut all = vec![vma(range(A, 4), "rw-p")];
        all.extend(shown);
        log.checkpoint(&all);
        judge(&log).drift_bytes
    };
    let of = |file: u32, perms: &str, offset: u64| Vma {
        file: FileId(file),
        offset,
        ..vma(range(B, 3), perms)
    };
    let shared_memory = MAP_SHARED | MAP_ANONYMOUS;
    assert_eq!(
        settled(MAP_PRIVATE, 2 * PAGE, &[of(5, "rw-p", 2 * PAGE)]),
        0
    );
    assert_eq!(settled(MAP_SHARED, 0, &[of(5, "rw-s", 0)]), 0);
    assert_eq!(settled(shared_memory, 0, &[of(6, "rw-s", 0)]), 0);
    // What its arguments contradict it did not make.
    assert_ne!(settled(MAP_PRIVATE, PAGE, &[of(5, "rw-p", 2 * PAGE)]), 0);
    assert_ne!(settled(MAP_PRIVATE, 0, &[of(5, "r--p", 0)]), 0);
    assert_ne!(settled(MAP_SHARED, 0, &[of(5, "rw-p", 0)]), 0);
    let anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    assert_ne!(settled(anonymous, 0, &[of(5, "rw-p", 0)]), 0);
}

/// A process is killed while several threads are in calls, and one took the place of another.
#[test]
fn unfinished_calls_are_settled_together() {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    let map = [0, 4 * PAGE, RW, flags, u64::MAX, 0];
    let grow = [A, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE];
    // The one moved from A to B, and the other was given A.
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    let moving = log.begin(T0, Call::Mremap, &grow);
    let mapping = log.begin(T1, Call::Mmap, &map);
    log.finish(mapping, Outcome::Unfinished);
    log.finish(moving, Outcome::Unfinished);
    log.checkpoint(&[vma(range(A, 4), "rw-p"), vma(range(B, 8), "rw-p")]);
    assert_eq!(judge(&log).drift_bytes, 0);

    // The other came back, and part of what it was given was never seen to be given up.
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    let moving = log.begin(T0, Call::Mremap, &grow);
    log.mmap(A, 4);
    log.finish(moving, Outcome::Unfinished);
    log.checkpoint(&[vma(range(A, 4), "rw-p"), vma(range(B, 8), "rw-p")]);
    assert_eq!(judge(&log).drift_bytes, 0);

    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    let releasing = log.begin(T0, Call::Munmap, &[A, 4 * PAGE]);
    log.mmap(A, 2);
    log.finish(releasing, Outcome::Unfinished);
    log.checkpoint(&[vma(range(A, 2), "rw-p")]);
    assert_eq!(judge(&log).drift_bytes, 0);

    // What nothing explains stays drift.
    let mut log = Log::new(&[]);
    log.mmap(A, 4);
    let releasing = log.begin(T0, Call::Munmap, &[A, 4 * PAGE]);
    log.finish(releasing, Outcome::Unfinished);
    log.checkpoint(&[vma(range(B, 1), "rw-p")]);
    assert_eq!(judge(&log).drift_bytes, PAGE);
}

/// Below a thread's stack and its guard page something new appeared that no call made: an unfinished one of
/// twice the size has not put itself over the guard.
#[test]
fn unfinished_calls_never_mapped_over_what_was_there() {
    let guard = vma(range(A, 1), "---p");
    let stack = vma(range(A + PAGE, 8), "rw-p");
    let mut log = Log::new(&[guard, stack]);
    let map = [0, 8 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, u64::MAX, 0];
    let mapping = log.begin(T1, Call::Mmap, &map);
    log.finish(mapping, Outcome::Unfinished);
    let appeared = vma(range(A - 4 * PAGE, 4), "rw-p");
    log.checkpoint(&[appeared, guard, stack]);
    assert_eq!(judge(&log).drift_bytes, 4 * PAGE);
}

/// Only a log that was made to do harm has so many; without bounds this would take for ever.
#[test]
fn unfinished_calls_without_number_are_not_all_judged() {
    let mut log = Log::new(&[]);
    let args = [0, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS];
    for _ in 0..1 << 17 {
        let begun = log.begin(T0, Call::Mmap, &args);
        log.finish(begun, Outcome::Unfinished);
    }
    let shown: Vec<Vma> = (0..500)
        .map(|i| vma(range(A + 2 * i * PAGE, 1), "r--p"))
        .collect();
    log.checkpoint(&shown);
    let (found, _) = verify(&mut log.source()).expect("memory reads");
    assert_eq!((found.drift_bytes, found.settled), (500 * PAGE, 4096));
}
