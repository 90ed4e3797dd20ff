//! What was where, and when: maps at an instant, who touched an address, sizes.

use maptrail_replay::Error;
use maptrail_replay::maps_at::maps_at;
use maptrail_replay::replay::replay;
use maptrail_replay::symbols::Names;
use maptrail_replay::usage::{Sizes, usage};
use maptrail_replay::views::events::{Events, Format};
use maptrail_replay::views::text::Screen;
use maptrail_replay::views::who::{Life, nearest};
use maptrail_replay::who::{Later, Question, What, who};
use maptrail_tracelog::calls::Call;
use maptrail_tracelog::record::{Body, Origin, Outcome, RssSample};
use maptrail_tracelog::types::{Addr, Nanos, PAGE, SpaceId, StackId, Stamp};

use crate::log::{Log, MAIN, MREMAP_MAYMOVE, START_BRK, T0, T1, range, vma};

const A: u64 = 0x10_0000;
const B: u64 = 0x20_0000;
const C: u64 = 0x30_0000;

fn calls_at(log: &Log, addr: u64, space: SpaceId) -> Vec<(Call, Addr)> {
    let (answers, _) = who(
        &mut log.source(),
        Question {
            only: Some(space),
            ..Question::about(Addr(addr))
        },
    )
    .expect("reads");
    let touches = answers.into_iter().flat_map(|who| who.touches);
    touches
        .filter_map(|touch| match touch.what {
            What::Call(event) => Some((event.call, touch.addr)),
            _ => None,
        })
        .collect()
}

#[test]
fn of_many_touches_the_first_and_the_last_are_told() {
    let mut log = Log::new(&[]);
    for _ in 0..100 {
        log.mmap(A, 1);
        log.munmap(A, 1);
    }
    let told = |most| {
        let question = Question {
            most,
            ..Question::about(Addr(A))
        };
        let (answers, _) = who(&mut log.source(), question).expect("reads");
        let stamps = answers[0].touches.iter().map(|touch| touch.stamp);
        (stamps.collect::<Vec<Stamp>>(), answers[0].left_out)
    };
    let (all, none) = told(usize::MAX);
    assert_eq!((all.len(), none), (200, 0));
    assert_eq!(told(200), (all.clone(), 0));
    let ends = [&all[..4], &all[197..]].concat();
    assert_eq!(told(7), (ends, 193));
}

#[test]
fn an_address_is_followed_back_through_moves() {
    let mut log = Log::new(&[]);
    log.mmap(C, 8); // Another life of the last place.
    log.munmap(C, 8);
    log.mmap(A, 8);
    log.call(Call::Mprotect, &[A, 8 * PAGE, 1], 0);
    log.call(Call::Mprotect, &[A, PAGE, 0], 0); // Another page.
    log.call(Call::Mremap, &[A, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE], B);
    log.mmap(A, 8); // Somebody else's.
    log.call(Call::Madvise, &[B + 2 * PAGE, 4 * PAGE, 4], 0);
    log.call(
        Call::Mremap,
        &[B + 2 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE],
        C,
    );
    let asked = PAGE + 17;
    let then = 3 * PAGE + 17;
    assert_eq!(
        calls_at(&log, C + asked, MAIN),
        [
            (Call::Mmap, Addr(A + then)),
            (Call::Mprotect, Addr(A + then)),
            (Call::Mremap, Addr(A + then)),
            (Call::Madvise, Addr(B + then)),
            (Call::Mremap, Addr(B + then)),
        ]
    );
}

/// So that nobody has to keep the moves, which can be many.
#[test]
fn a_mapping_knows_where_it_was_born() {
    let mut log = Log::new(&[vma(range(C, 4), "rw-p")]);
    log.mmap(A, 8);
    for _ in 0..50 {
        log.call(Call::Mremap, &[A, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE], B);
        log.call(Call::Mremap, &[B, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE], A);
    }
    // A piece of it, and a new page behind that.
    let piece = A + 2 * PAGE;
    log.call(
        Call::Mremap,
        &[piece, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE],
        B,
    );
    // What was there before is followed, too.
    let last = C + 3 * PAGE;
    log.call(Call::Mremap, &[last, PAGE, PAGE, MREMAP_MAYMOVE], C - PAGE);
    let (maps, _) = maps_at(&mut log.source(), None, None).expect("reads");
    let origin = |addr| {
        let regions = maps.iter().flat_map(|maps| &maps.regions);
        let mut holding = regions.filter(|m| m.region.range.contains(Addr(addr)));
        holding.next().map(|m| m.region.origin_of(Addr(addr)))
    };
    assert_eq!(origin(A + 17), Some(Addr(A + 17)));
    assert_eq!(origin(B + PAGE), Some(Addr(piece + PAGE)));
    assert_eq!(origin(B + 2 * PAGE), Some(Addr(B + 2 * PAGE)));
    assert_eq!(origin(C - PAGE), Some(Addr(last)));
    assert_eq!(calls_at(&log, B, MAIN).len(), 1 + 100 + 1);
    assert_eq!(calls_at(&log, C - PAGE, MAIN), [(Call::Mremap, Addr(last))]);
}

#[test]
fn an_address_in_a_forked_copy_is_followed_into_the_parent() {
    let mut log = Log::new(&[]);
    log.mmap(A, 8);
    log.start(
        SpaceId(1),
        Origin::Fork { parent: MAIN },
        &[vma(range(A, 8), "rw-p")],
    );
    log.call(Call::Mprotect, &[A, 8 * PAGE, 1], 0); // The parent's, after the fork.
    log.space = SpaceId(1);
    log.call(Call::Madvise, &[A, 8 * PAGE, 4], 0);
    assert_eq!(
        calls_at(&log, A, SpaceId(1)),
        [(Call::Mmap, Addr(A)), (Call::Madvise, Addr(A))]
    );
    assert_eq!(
        calls_at(&log, A, MAIN),
        [(Call::Mmap, Addr(A)), (Call::Mprotect, Addr(A))]
    );
}

#[test]
fn the_heap_and_places_that_are_empty_now_have_a_story_too() {
    let mut log = Log::new(&[]);
    log.call(Call::Brk, &[START_BRK + 4 * PAGE], START_BRK + 4 * PAGE);
    log.call(Call::Brk, &[START_BRK], START_BRK);
    log.mmap(A, 1);
    log.munmap(A, 1);
    let at = |addr| -> Vec<Call> {
        calls_at(&log, addr, MAIN)
            .into_iter()
            .map(|(call, _)| call)
            .collect()
    };
    assert_eq!(at(START_BRK + PAGE), [Call::Brk, Call::Brk]);
    assert_eq!(at(A), [Call::Mmap, Call::Munmap]);
    let (answers, _) = who(&mut log.source(), Question::about(Addr(B))).expect("reads");
    assert_eq!(answers, [], "never mapped");
}

#[test]
fn a_shrinking_heap_is_told_when_it_shrinks() {
    let mut log = Log::new(&[]);
    log.call(Call::Brk, &[START_BRK + 4 * PAGE], START_BRK + 4 * PAGE);
    let shrink = log.begin(T0, Call::Brk, &[START_BRK]);
    // Another thread is given what went.
    log.call_of(T1, Call::Mmap, &[0, PAGE, 3, 0x22, u64::MAX, 0], A as i64);
    let after = log.finish(shrink, Outcome::Returned(START_BRK as i64));
    let mut out = Vec::new();
    let mut events = Events::new(&mut out, Format::Json);
    replay(&mut log.source(), &mut events).expect("reads");
    events.finish().expect("memory takes everything");
    let told: Vec<(String, u64)> = String::from_utf8(out)
        .expect("text")
        .lines()
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let call = event["call"].as_str().expect("a name").to_owned();
            (call, event["t_ns"].as_u64().expect("a time"))
        })
        .collect();
    let names: Vec<&str> = told.iter().map(|(call, _)| call.as_str()).collect();
    assert_eq!(names, ["brk", "brk", "mmap"], "once each, in effect order");
    assert_eq!(told[1].1, shrink.event.entry_ns.0);
    let who_says = who(&mut log.source(), Question::about(Addr(START_BRK))).expect("reads");
    let touched: Vec<Stamp> = who_says.0[0].touches.iter().map(|t| t.stamp).collect();
    assert_eq!(touched[1], shrink.event.entry, "not {after:?}");
}

#[test]
fn what_is_mapped_later_is_told_so() {
    let mut log = Log::new(&[]);
    log.mmap(A, 1);
    let asked = log.now();
    log.mmap(B, 1);
    let mapped = log.now();
    log.munmap(B, 1);
    let (answers, world) = who(
        &mut log.source(),
        Question {
            at: Some(asked),
            ..Question::about(Addr(B))
        },
    )
    .expect("reads");
    let [answer] = &answers[..] else {
        panic!("one space: {answers:?}");
    };
    let later = Later {
        asked,
        first: mapped,
    };
    assert_eq!(
        (answer.later, answer.now, &answer.touches[..]),
        (Some(later), None, &[][..])
    );
    let mut names = Names::from_log(Vec::new());
    let life = Life::new(Addr(B), &answers, &world, &mut names);
    let mut text = Vec::new();
    life.write_text(&mut text, Screen::PLAIN).expect("memory");
    let text = String::from_utf8(text).expect("text");
    assert!(
        text.ends_with("nothing was mapped there by 0.000 s; first mapped at 0.000 s.\n"),
        "{text}"
    );
    let (never, _) = who(
        &mut log.source(),
        Question {
            at: Some(asked),
            ..Question::about(Addr(C))
        },
    )
    .expect("reads");
    assert_eq!(never, []);
}

#[test]
fn the_nearest_mapping_is_told_if_it_is_near() {
    let mut log = Log::new(&[]);
    log.mmap(A, 1);
    let (spaces, world) = maps_at(&mut log.source(), None, None).expect("reads");
    let told = |addr| nearest(Addr(addr), &spaces, &world);
    assert!(told(A + 2 * PAGE).is_some_and(|near| near.contains("below it")));
    assert_eq!(told(A + (2 << 30)), None);
}

#[test]
fn maps_are_those_of_the_instant() {
    let mut log = Log::new(&[vma(range(C, 1), "r-xp")]);
    log.mmap(A, 4);
    let between = log.now();
    log.munmap(A, 4);
    log.mmap(B, 4);
    let ranges = |at| {
        let (maps, _) = maps_at(&mut log.source(), at, None).expect("reads");
        let regions = maps.into_iter().flat_map(|maps| maps.regions);
        regions.map(|m| m.region.range).collect::<Vec<_>>()
    };
    assert_eq!(ranges(Some(between)), [range(A, 4), range(C, 1)]);
    assert_eq!(ranges(None), [range(B, 4), range(C, 1)]);
    let past = Nanos(log.now().0 + 1);
    let refused = maps_at(&mut log.source(), Some(past), None);
    assert!(matches!(refused, Err(Error::OutsideWindow { .. })));
}

#[test]
fn sizes_over_time_are_apart_and_end_with_their_space() {
    let mut log = Log::new(&[vma(range(C, 10), "---p")]);
    log.tick_ns = 1_000_000;
    log.mmap(A, 4);
    log.record(Body::Rss(
        MAIN,
        RssSample {
            anon: 3 * PAGE,
            ..RssSample::default()
        },
    ));
    log.start(
        SpaceId(1),
        Origin::Fork { parent: MAIN },
        &[vma(range(A, 4), "rw-p")],
    );
    log.end(SpaceId(1));
    log.stack = StackId(2);
    log.mmap(B, 2);
    log.munmap(B, 2);
    let (found, _) = usage(&mut log.source(), 10_000, 1).expect("reads");
    let last = found.points.last().expect("points");
    assert_eq!(last.reserved_bytes, 14 * PAGE);
    assert_eq!(last.committed_bytes, 4 * PAGE);
    assert_eq!(last.resident_bytes, Some(3 * PAGE));
    let before_the_sample = found.points[0].resident_bytes;
    assert_eq!(before_the_sample, None, "unknown, which is not 0");
    assert_eq!(found.peak.reserved_bytes, 18 * PAGE, "while the copy lived");
    assert_eq!(found.spaces.len(), 2);
    assert_eq!(
        found.spaces[1].points.iter().last(),
        Some(Default::default())
    );
    let [stack] = &found.stacks[..] else {
        panic!("the greatest only: {found:?}");
    };
    assert_eq!((stack.stack, stack.peak_bytes), (StackId(1), 4 * PAGE));
    let greatest = found.points.iter().map(|p| p.reserved_bytes).max();
    assert_eq!(greatest, Some(found.peak.reserved_bytes));
}

#[test]
fn of_many_spaces_the_greatest_are_told() {
    let mut log = Log::new(&[vma(range(C, 10), "rw-p")]);
    for i in 1..=1000u32 {
        let child = SpaceId(i);
        // One in ten is greater than the rest.
        let pages = if i % 10 == 0 { 8 } else { 1 };
        log.start(child, Origin::Fork { parent: MAIN }, &[]);
        log.space = child;
        log.mmap(A, pages);
        log.end(child);
    }
    let (found, world) = usage(&mut log.source(), 200, 1).expect("reads");
    assert_eq!(
        (found.spaces.len(), found.spaces_left_out),
        (256, 1001 - 256)
    );
    let told = |id: u32| found.spaces.iter().any(|space| space.space == SpaceId(id));
    assert!((1..=100).all(|i| told(10 * i)), "{:?}", found.spaces);
    assert!(found.spaces.is_sorted_by_key(|space| space.space));
    assert_eq!(world.space_infos().len(), 1001);
}

#[test]
fn the_last_point_is_the_state_before_the_program_ended() {
    let mut log = Log::new(&[]);
    log.tick_ns = 1_000_000;
    log.mmap(A, 4);
    let in_ram = RssSample {
        anon: 3 * PAGE,
        ..RssSample::default()
    };
    log.record(Body::Rss(MAIN, in_ram));
    log.end(MAIN);
    let gone_at = log.now();
    // Another program in its place ends the first one for good; the second one is never sampled.
    log.wait_until(Nanos(gone_at.0 + 50_000_000));
    log.exec(SpaceId(1), &[]);
    log.space = SpaceId(1);
    log.mmap(B, 2);
    log.end(SpaceId(1));
    let (found, _) = usage(&mut log.source(), 1000, 8).expect("reads");
    let whole = |points: &[Sizes]| {
        let last = points.last().expect("points");
        (last.reserved_bytes, last.resident_bytes)
    };
    assert_eq!(whole(&found.points), (2 * PAGE, None));
    assert_eq!(
        whole(&found.spaces[0].points.iter().collect::<Vec<_>>()),
        (0, None)
    );
    let step = (found.step_s * 1e9) as u64;
    let between = (gone_at.0 + 25_000_000) / step;
    assert_eq!(found.points[between as usize].reserved_bytes, 0);
    assert_eq!(found.stacks[0].held_bytes.last(), Some(&(2 * PAGE)));
}
