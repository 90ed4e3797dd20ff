//! Verdicts and sums of `leaks` on logs whose truth is known.

use maptrail_replay::leaks::{By, Leaks, Options, Row, Subject, Verdict, leaks};
use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{
    Body, ModuleInfo, ModuleKind, Origin, PageRun, Residency, RssSample, StackNode,
};
use maptrail_tracelog::types::{FileId, ModuleId, Nanos, PAGE, Range, SpaceId, StackId};

use crate::log::{Log, MAIN, MAP_ANONYMOUS, MAP_GROWSDOWN, MAP_PRIVATE, RW, T1, range, vma};

const BASE: u64 = 0x1_0000_0000;
const SECOND: u64 = 1_000_000_000;
/// Apart from each other in the address space.
const STRIDE: u64 = 0x10_0000;

fn at(i: u64) -> u64 {
    BASE + i * STRIDE
}

fn ask(log: &Log, options: Options) -> Leaks {
    let (answer, world) = leaks(&mut log.source(), options).expect("memory reads");
    world.spaces().for_each(|space| space.assert_valid());
    answer
}

fn row_of(answer: &Leaks, stack: u32) -> &Row {
    let subject = Subject::Stack(StackId(stack));
    let found = answer.rows.iter().find(|row| row.subject == subject);
    found.unwrap_or_else(|| panic!("no row of stack {stack}: {answer:#?}"))
}

fn only_row(log: &Log) -> Row {
    let answer = ask(log, Options::default());
    assert_eq!(answer.rows.len(), 1, "{answer:#?}");
    row_of(&answer, 1).clone()
}

/// Ends the window a while after the last call.
fn close(log: &mut Log, at: u64) {
    log.wait_until(Nanos(at));
    log.record(Body::Note("end".into()));
}

#[test]
fn a_steady_leak_among_churn_is_a_leak_at_its_rate() {
    let mut log = Log::new(&[]);
    for i in 0..600 {
        log.wait_until(Nanos(i * SECOND / 10));
        log.stack = StackId(1);
        log.mmap(at(i), 16);
        log.stack = StackId(2);
        for _ in 0..20 {
            log.mmap(BASE - STRIDE, 16);
            log.munmap(BASE - STRIDE, 16);
        }
    }
    close(&mut log, 60 * SECOND);
    let answer = ask(&log, Options::default());
    let leak = row_of(&answer, 1);
    assert_eq!(leak.verdict, Verdict::Leak, "{leak:#?}");
    assert_eq!(
        (leak.held_mappings, leak.held_bytes),
        (600, 600 * 16 * PAGE)
    );
    assert_eq!((leak.released_bytes, leak.median_bytes), (0, 16 * PAGE));
    let true_rate = (600 * 16 * PAGE) as f64;
    let off = (leak.growth_bytes_per_min - true_rate).abs() / true_rate;
    assert!(off < 0.02, "{} bytes a minute", leak.growth_bytes_per_min);
    let churn = row_of(&answer, 2);
    assert_eq!(churn.verdict, Verdict::Churn, "{churn:#?}");
    assert_eq!((churn.mapped_calls, churn.held_bytes), (12_000, 0));
    assert_eq!(churn.released_bytes, churn.mapped_bytes);
    assert_eq!(answer.rows[0].verdict, Verdict::Leak, "worst first");
    assert_eq!(
        (answer.leak_rows, answer.leaked_bytes),
        (1, leak.held_bytes)
    );
}

#[test]
fn a_leak_hidden_in_the_churn_of_its_own_stack_is_found() {
    let mut log = Log::new(&[]);
    for i in 0..2000 {
        log.wait_until(Nanos(i * SECOND / 100));
        log.mmap(at(i), 4);
        if i % 20 != 0 {
            log.munmap(at(i), 4);
        }
    }
    close(&mut log, 20 * SECOND);
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Leak, "{row:#?}");
    assert_eq!(row.held_mappings, 100);
}

#[test]
fn growth_that_stopped_is_a_plateau() {
    let mut log = Log::new(&[]);
    for i in 0..40 {
        log.wait_until(Nanos(i * SECOND / 10));
        log.mmap(at(i), 4);
    }
    close(&mut log, 20 * SECOND);
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Plateau, "{row:#?}");
}

#[test]
fn a_cache_that_gives_back_what_is_old_is_no_leak() {
    let mut log = Log::new(&[]);
    for i in 0..1000 {
        log.wait_until(Nanos(i * SECOND / 50));
        log.mmap(at(i), 4);
        if let Some(old) = i.checked_sub(50) {
            log.munmap(at(old), 4);
        }
    }
    close(&mut log, 20 * SECOND);
    let row = only_row(&log);
    assert_eq!(row.held_mappings, 50);
    assert_ne!(row.verdict, Verdict::Leak, "{row:#?}");
}

#[test]
fn what_is_given_back_is_never_a_leak() {
    let mut log = Log::new(&[]);
    for i in 0..100 {
        log.wait_until(Nanos(i * SECOND / 10));
        log.mmap(at(i), 4);
    }
    // It grew all along, and all of it goes at the very end.
    for i in 0..100 {
        log.munmap(at(i), 4);
    }
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Churn, "{row:#?}");
    assert_eq!((row.held_bytes, row.held_mappings), (0, 0));
}

#[test]
fn one_mapping_or_two_are_one_offs() {
    let mut log = Log::new(&[]);
    log.mmap(at(0), 1000);
    close(&mut log, 20 * SECOND);
    assert_eq!(only_row(&log).verdict, Verdict::OneOff);
}

#[test]
fn what_a_program_maps_while_it_starts_is_a_one_off() {
    let loaded = |origin: Origin| {
        let mut log = Log::empty();
        log.start(MAIN, origin, &[]);
        for i in 0..1200 {
            log.mmap(at(i), 4);
        }
        close(&mut log, 20 * SECOND);
        only_row(&log)
    };
    let exec = Origin::Exec {
        path: "/victim".into(),
        argv: vec![],
    };
    let row = loaded(exec);
    assert_eq!(row.verdict, Verdict::OneOff, "{row:#?}");
    assert!(row.evidence.starts_with("1,200 mappings held"), "{row:#?}");
    // A process that has been running for long does not start when somebody looks.
    let row = loaded(Origin::Attach);
    assert_eq!(row.verdict, Verdict::Plateau, "{row:#?}");
}

#[test]
fn the_loader_of_a_program_that_lives_for_milliseconds_does_not_leak() {
    let loaded = |outermost: ModuleId| {
        let mut log = Log::new(&[]);
        for (id, path) in [(1, "/lib64/ld-linux-x86-64.so.2"), (2, "/victim")] {
            log.file(FileId(id), u64::from(id), path);
            let info = ModuleInfo {
                kind: ModuleKind::File,
                file: FileId(id),
                build_id: vec![],
            };
            log.record(Body::Module(ModuleId(id), info));
        }
        log.stack = StackId(2);
        for i in 0..20 {
            log.mmap(at(i), 4);
        }
        let node = |parent, module| StackNode {
            parent: StackId(parent),
            module,
            offset: 0x1000,
            flags: 0,
        };
        log.nodes(vec![node(0, outermost), node(1, ModuleId(1))]);
        row_of(&ask(&log, Options::default()), 2).verdict
    };
    assert_eq!(loaded(ModuleId(1)), Verdict::OneOff);
    // What the program has loaded is its own affair.
    assert_eq!(loaded(ModuleId(2)), Verdict::Leak);
}

#[test]
fn few_mappings_are_undecided() {
    let mut log = Log::new(&[]);
    for i in 0..4 {
        log.wait_until(Nanos(i * 5 * SECOND));
        log.mmap(at(i), 1000);
    }
    close(&mut log, 20 * SECOND);
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Undecided, "{row:#?}");
    assert!(row.evidence.contains("only 4 mappings"), "{}", row.evidence);
}

#[test]
fn address_space_without_access_is_a_reservation() {
    let mut log = Log::new(&[]);
    for i in 0..100 {
        log.wait_until(Nanos(i * SECOND / 10));
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        log.call(Call::Mmap, &[0, 4 * PAGE, 0, flags, u64::MAX, 0], at(i));
    }
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Reservation, "{row:#?}");
    assert_eq!((row.held_bytes, row.committed_bytes), (400 * PAGE, 0));
    // Once any of it is used, it is no reservation any more.
    log.call(Call::Mprotect, &[at(7), 3 * PAGE, RW], 0);
    let row = only_row(&log);
    assert_eq!(row.committed_bytes, 3 * PAGE);
    assert_eq!(row.verdict, Verdict::Leak, "{row:#?}");
}

#[test]
fn memory_that_is_never_in_ram_is_a_reservation() {
    let mut log = Log::new(&[]);
    for i in 0..100 {
        log.wait_until(Nanos(i * SECOND / 10));
        log.stack = StackId(1 + (i % 2) as u32);
        log.mmap(at(i), 4);
    }
    // Two of the four pages of each of the first stack's mappings.
    let runs = (0..100).step_by(2).scan(0, |last, i| {
        let first = at(i) / PAGE + 1;
        let gap = first - *last;
        *last = first + 2;
        Some(PageRun { gap, pages: 2 })
    });
    log.record(Body::Residency(Residency {
        space: MAIN,
        looked_at: vec![range(BASE, 100 * STRIDE / PAGE)],
        resident: runs.collect(),
        swapped: vec![],
    }));
    let sample = |anon| RssSample {
        anon,
        ..RssSample::default()
    };
    log.record(Body::Rss(MAIN, sample(PAGE)));
    log.record(Body::Rss(MAIN, sample(100 * PAGE)));
    let answer = ask(&log, Options::default());
    let used = row_of(&answer, 1);
    assert_eq!(
        (used.verdict, used.resident_bytes),
        (Verdict::Leak, Some(100 * PAGE))
    );
    let unused = row_of(&answer, 2);
    assert_eq!(
        (unused.verdict, unused.resident_bytes),
        (Verdict::Reservation, Some(0))
    );
    let growth = answer.growth;
    assert_eq!(growth.reserved_bytes, 400 * PAGE as i64);
    assert_eq!(growth.committed_bytes, 400 * PAGE as i64);
    assert_eq!(growth.resident_bytes, 100 * PAGE as i64);
    assert_eq!(growth.explained_resident_bytes, 100 * PAGE);
}

/// A hundred mappings of four pages, and a look at the pages of some.
fn looked_at(looked_at: Vec<Range>, swapped: Vec<PageRun>) -> Log {
    let mut log = Log::new(&[]);
    for i in 0..100 {
        log.wait_until(Nanos(i * SECOND / 10));
        log.mmap(at(i), 4);
    }
    log.record(Body::Residency(Residency {
        space: MAIN,
        looked_at,
        resident: vec![],
        swapped,
    }));
    log
}

#[test]
fn a_look_that_ran_out_of_time_is_no_proof_of_a_reservation() {
    let log = looked_at(vec![range(BASE, 10 * STRIDE / PAGE)], vec![]);
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Leak, "{row:#?}");
    assert_eq!(
        (row.looked_at_bytes, row.resident_bytes),
        (40 * PAGE, Some(0))
    );
}

#[test]
fn what_came_after_the_look_was_not_looked_at() {
    let everything = vec![range(BASE, 200 * STRIDE / PAGE)];
    let mut log = looked_at(everything, vec![]);
    assert_eq!(only_row(&log).verdict, Verdict::Reservation);
    // As many bytes as before are held, but one mapping is another.
    log.munmap(at(7), 4);
    log.mmap(at(100), 4);
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Leak, "{row:#?}");
    assert_eq!(row.looked_at_bytes, 396 * PAGE);
    // And when that one goes, too, all that is left was looked at.
    log.munmap(at(100), 4);
    assert_eq!(only_row(&log).verdict, Verdict::Reservation);
}

#[test]
fn swapped_memory_is_no_reservation() {
    let first = PageRun {
        gap: BASE / PAGE,
        pages: 3,
    };
    let log = looked_at(vec![range(BASE, 100 * STRIDE / PAGE)], vec![first]);
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Leak, "{row:#?}");
    assert_eq!((row.resident_bytes, row.swapped_bytes), (Some(0), 3 * PAGE));
}

#[test]
fn partly_released_mappings_hold_the_rest() {
    let mut log = Log::new(&[]);
    for (i, cut) in [(0, 0), (1, 6), (2, 3)] {
        log.mmap(at(i), 8);
        // Head, tail, middle.
        log.munmap(at(i) + cut * PAGE, 2);
    }
    let row = only_row(&log);
    assert_eq!((row.held_mappings, row.held_bytes), (3, 18 * PAGE));
    assert_eq!(
        (row.mapped_bytes, row.released_bytes),
        (24 * PAGE, 6 * PAGE)
    );
}

#[test]
fn alignment_trimming_is_neither_churn_nor_a_greater_leak() {
    // As allocators do for 64 KiB alignment: map twice as much, cut both ends off.
    let mut log = Log::new(&[]);
    for i in 0..100 {
        log.wait_until(Nanos(i * SECOND / 10));
        log.mmap(at(i) + PAGE, 32);
        log.munmap(at(i) + PAGE, 15);
        log.munmap(at(i) + 32 * PAGE, 1);
    }
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::Leak, "{row:#?}");
    assert_eq!((row.held_mappings, row.held_bytes), (100, 1600 * PAGE));
}

#[test]
fn pages_that_the_kernel_grew_count_when_they_come_and_when_they_go() {
    let mut log = Log::new(&[]);
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN;
    log.call(Call::Mmap, &[0, PAGE, RW, flags, u64::MAX, 0], at(1));
    log.mmap(at(2), 1);
    // A call that succeeds on all of it proves that it has grown by 64 pages.
    let bottom = at(1) - 64 * PAGE;
    log.call(Call::Mprotect, &[bottom, 65 * PAGE, 1], 0);
    let held = only_row(&log);
    assert_eq!((held.mapped_bytes, held.held_bytes), (66 * PAGE, 66 * PAGE));
    assert_eq!((held.mapped_calls, held.released_bytes), (2, 0));
    log.munmap(bottom, 65);
    let row = only_row(&log);
    assert_eq!(
        (row.mapped_bytes, row.released_bytes),
        (66 * PAGE, 65 * PAGE)
    );
    assert_eq!((row.held_mappings, row.held_bytes), (1, PAGE));
}

#[test]
fn moved_memory_is_still_its_makers() {
    let mut log = Log::new(&[]);
    log.mmap(at(0), 4);
    log.stack = StackId(2);
    log.call(Call::Mremap, &[at(0), 4 * PAGE, 6 * PAGE, 1], at(9));
    let answer = ask(&log, Options::default());
    assert_eq!(row_of(&answer, 1).held_bytes, 4 * PAGE);
    assert_eq!(
        row_of(&answer, 2).held_bytes,
        2 * PAGE,
        "what the move added"
    );
}

#[test]
fn many_short_processes_with_one_mapping_each_are_no_leak() {
    let mut log = Log::new(&[]);
    for i in 0..50u32 {
        let child = SpaceId(1 + i);
        log.wait_until(Nanos(u64::from(i) * SECOND));
        log.start(child, Origin::Fork { parent: MAIN }, &[]);
        log.space = child;
        log.mmap(at(0), 100);
        log.end(child);
    }
    let row = only_row(&log);
    assert_eq!(row.verdict, Verdict::OneOff, "{row:#?}");
    assert_eq!((row.spaces, row.held_mappings), (50, 50));
}

#[test]
fn a_leak_in_a_forked_worker_is_its_own_and_inherited_memory_is_not() {
    let mut log = Log::new(&[]);
    log.stack = StackId(2);
    log.mmap(at(900), 10);
    let child = SpaceId(1);
    log.start(
        child,
        Origin::Fork { parent: MAIN },
        &[vma(range(at(900), 10), "rw-p")],
    );
    log.space = child;
    log.stack = StackId(1);
    for i in 0..100 {
        log.wait_until(Nanos(i * SECOND / 10));
        log.mmap(at(i), 4);
    }
    log.end(child);
    let answer = ask(&log, Options::default());
    assert_eq!(row_of(&answer, 1).verdict, Verdict::Leak);
    let inherited = row_of(&answer, 2);
    assert_eq!(
        (inherited.mapped_calls, inherited.held_bytes),
        (1, 10 * PAGE)
    );
    assert_eq!(answer.growth.reserved_bytes, 410 * PAGE as i64);
}

#[test]
fn young_mappings_can_be_left_out() {
    let mut log = Log::new(&[]);
    for i in 0..10 {
        log.wait_until(Nanos(i * SECOND));
        log.mmap(at(i), 4);
    }
    close(&mut log, 10 * SECOND);
    let options = Options {
        min_age: Nanos(5 * SECOND),
        ..Options::default()
    };
    let answer = ask(&log, options);
    let row = row_of(&answer, 1);
    assert_eq!((row.held_mappings, row.young_mappings), (5, 5));
}

#[test]
fn young_mappings_that_are_left_out_were_not_given_back() {
    let mut log = Log::new(&[]);
    for i in 0..60 {
        log.wait_until(Nanos(i * SECOND));
        log.stack = StackId(1);
        log.mmap(at(i), 4);
        // A stack that does give back, but for its last mapping.
        log.stack = StackId(2);
        log.mmap(at(100 + i), 4);
        if i < 59 {
            log.munmap(at(100 + i), 4);
        }
    }
    log.stack = StackId(3);
    log.mmap(at(200), 4);
    close(&mut log, 60 * SECOND);
    let options = Options {
        min_age: Nanos(61 * SECOND),
        ..Options::default()
    };
    let answer = ask(&log, options);
    let held = row_of(&answer, 1);
    assert_eq!(held.verdict, Verdict::Undecided, "{held:#?}");
    assert_eq!((held.held_mappings, held.held_bytes), (0, 0));
    assert_eq!(
        (held.young_mappings, held.young_bytes, held.released_bytes),
        (60, 240 * PAGE, 0)
    );
    let words = "; 60 younger than 61.0 s left out";
    assert!(held.evidence.ends_with(words), "{}", held.evidence);
    let churn = row_of(&answer, 2);
    assert_eq!(churn.verdict, Verdict::Churn, "{churn:#?}");
    assert!(churn.evidence.starts_with("98.3 %"), "{}", churn.evidence);
    let one = row_of(&answer, 3);
    assert_eq!(
        one.evidence,
        "one mapping, held; 1 younger than 61.0 s left out"
    );
}

#[test]
fn rows_can_be_about_threads_and_kinds_and_be_cut_short() {
    let mut log = Log::new(&[]);
    let args = [0, 4 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, u64::MAX, 0];
    for i in 0..8 {
        log.stack = StackId(1 + (i % 2) as u32);
        log.call_of(T1, Call::Mmap, &args, at(i) as i64);
    }
    let by = |by| {
        ask(
            &log,
            Options {
                by,
                ..Options::default()
            },
        )
    };
    assert!(matches!(
        by(By::Thread).rows[..],
        [Row {
            subject: Subject::Thread(T1),
            ..
        }]
    ));
    let kinds = by(By::Kind);
    assert!(matches!(
        kinds.rows[..],
        [Row {
            subject: Subject::Kind(Call::Mmap, _),
            ..
        }]
    ));
    let options = Options {
        top: Some(1),
        ..Options::default()
    };
    let cut = ask(&log, options);
    assert_eq!((cut.rows.len(), cut.rows_left_out), (1, 1));
}

#[test]
fn ram_grows_from_the_start_of_a_program_and_no_more_is_explained() {
    let pages = |pages: u64| RssSample {
        anon: pages * PAGE,
        ..RssSample::default()
    };
    let grown = |origin: Origin| {
        let mut log = Log::empty();
        log.start(MAIN, origin, &[]);
        log.mmap(at(0), 100);
        // The first sample comes late, when most of it is there.
        log.record(Body::Rss(MAIN, pages(80)));
        log.record(Body::Rss(MAIN, pages(95)));
        let all = PageRun {
            gap: at(0) / PAGE,
            pages: 100,
        };
        log.record(Body::Residency(Residency {
            space: MAIN,
            looked_at: vec![range(at(0), 100)],
            resident: vec![all],
            swapped: vec![],
        }));
        let growth = ask(&log, Options::default()).growth;
        (growth.resident_bytes, growth.explained_resident_bytes)
    };
    let exec = Origin::Exec {
        path: "/victim".into(),
        argv: vec![],
    };
    assert_eq!(grown(exec), (100 * PAGE as i64, 100 * PAGE));
    // What an older process had before is not known: 80 of the pages may have replaced others.
    assert_eq!(grown(Origin::Attach), (20 * PAGE as i64, 20 * PAGE));
}
