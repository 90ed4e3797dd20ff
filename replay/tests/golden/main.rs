//! What every view prints for two small logs, text and JSON, compared with the files in `expected/`.
//!
//! Run with `MAPTRAIL_UPDATE_GOLDEN=1` to write those files anew, and read the difference.

mod attached;
mod story;

use std::io::{Cursor, Write};
use std::path::PathBuf;

use maptrail_replay::check::verify;
use maptrail_replay::leaks::{By, Leaks, Options, Row, Verdict, leaks};
use maptrail_replay::maps_at::maps_at;
use maptrail_replay::replay::replay;
use maptrail_replay::symbols::Names;
use maptrail_replay::usage::usage;
use maptrail_replay::views;
use maptrail_replay::views::events::{Events, Format};
use maptrail_replay::views::leaks::{Detail, Report};
use maptrail_replay::views::maps::Maps;
use maptrail_replay::views::text::Screen;
use maptrail_replay::views::timeline::{Timeline, points};
use maptrail_replay::views::who::{Life, nearest};
use maptrail_replay::who::{Question, who};
use maptrail_tracelog::reader::{LogBytes, LogReader};
use maptrail_tracelog::types::{Addr, Nanos};

const TERMINAL: Screen = Screen {
    width: 90,
    colour: true,
    terminal: true,
    depth: Screen::DEPTH,
};

type Log = LogReader<Cursor<Vec<u8>>>;

fn log() -> Log {
    LogReader::open(Cursor::new(story::log())).expect("the story is a log")
}

/// Names from the log alone, so that this machine's files do not matter.
fn names(log: &mut Log) -> Names {
    Names::from_log(log.names().expect("names"))
}

fn print(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("memory takes everything");
    String::from_utf8(out).expect("text")
}

fn compare(name: &str, printed: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/expected")
        .join(name);
    if std::env::var_os("MAPTRAIL_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, printed).expect("the golden file can be written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        printed == expected,
        "{} differs from what is printed now. If that is wanted, run the tests with \
         MAPTRAIL_UPDATE_GOLDEN=1 and look at the difference.\n--- printed now:\n{printed}",
        path.display()
    );
    // Whatever the target calls itself, only our own colours reach a terminal.
    let coloured = name.contains("terminal");
    let harmful = |c: char| c.is_control() && c != '\n' && !(coloured && c == '\x1b');
    assert!(!printed.contains(harmful), "{name} has control characters");
    assert!(
        !printed.contains("\x1b[31m/"),
        "{name} has the target's colour"
    );
}

fn report(by: By, top: Option<usize>) -> Report {
    let mut log = log();
    let options = Options {
        by,
        top,
        ..Options::default()
    };
    let (found, world) = leaks(&mut log, options).expect("a good log");
    Report::new(&found, by, &world, &mut names(&mut log))
}

#[test]
fn leaks_answers_first() {
    let report = report(By::Stack, None);
    for (name, screen, detail) in [
        ("leaks.txt", Screen::PLAIN, Detail::Leaks),
        ("leaks-all.txt", Screen::PLAIN, Detail::All),
        ("leaks-terminal.txt", TERMINAL, Detail::Leaks),
    ] {
        compare(name, &print(|out| report.write_text(out, screen, detail)));
    }
    compare("leaks.json", &print(|out| views::write_json(out, &report)));
}

#[test]
fn a_second_is_the_least_that_a_rate_is_told_of() {
    let mut log = log();
    let (mut found, world) = leaks(&mut log, Options::default()).expect("a good log");
    for row in &mut found.rows {
        row.growth_span_s = 0.005;
        // It ended while it gave back.
        row.growth_bytes_per_min -= 1e6;
    }
    let report = Report::new(&found, By::Stack, &world, &mut names(&mut log));
    let printed = print(|out| report.write_text(out, Screen::PLAIN, Detail::All));
    assert!(!printed.contains("/min"), "{printed}");
    for words in ["and grew to that in 0.005 s.", "  +60.0 MiB in 0.005 s  "] {
        assert!(printed.contains(words), "{printed}");
    }
    let gone = "CHURN  0 B held  60 mapped  100 % given back\n";
    assert!(printed.contains(gone), "{printed}");
}

#[test]
fn ram_that_was_not_all_looked_at_is_the_least_there_is() {
    let mut log = log();
    let (mut found, world) = leaks(&mut log, Options::default()).expect("a good log");
    let worst = found.rows.first_mut().expect("a leak");
    worst.looked_at_bytes = worst.held_bytes / 2;
    worst.resident_bytes = Some(3 << 20);
    worst.swapped_bytes = 2 << 20;
    let report = Report::new(&found, By::Stack, &world, &mut names(&mut log));
    let printed = print(|out| report.write_text(out, Screen::PLAIN, Detail::Leaks));
    let words = "  at least 3.0 MiB in RAM and 2.0 MiB in swap  ";
    assert!(printed.contains(words), "{printed}");
}

#[test]
fn what_top_leaves_out_is_judged_all_the_same() {
    let text = |change: fn(&mut Vec<Row>), top| {
        let mut log = log();
        let (mut found, world) = leaks(&mut log, Options::default()).expect("a good log");
        change(&mut found.rows);
        let found = Leaks::new(found.window_s, found.growth, found.rows, top);
        let report = Report::new(&found, By::Stack, &world, &mut names(&mut log));
        print(|out| report.write_text(out, Screen::PLAIN, Detail::All))
    };
    let printed = text(|_| {}, Some(0));
    assert!(
        printed.starts_with("Leak: 1 stack holds 60.0 MiB.\n"),
        "{printed}"
    );
    let undecided: fn(&mut Vec<Row>) = |rows| {
        rows.iter_mut()
            .for_each(|row| row.verdict = Verdict::Undecided);
    };
    for top in [None, Some(1), Some(0)] {
        let printed = text(undecided, top);
        assert!(printed.starts_with("No leak found"), "{printed}");
        let words = "\n3 stacks are undecided and hold 61.0 MiB: ";
        assert!(printed.contains(words), "{printed}");
    }
}

#[test]
fn a_leak_explains_no_growth_where_there_is_none() {
    let mut log = log();
    let (mut found, world) = leaks(&mut log, Options::default()).expect("a good log");
    for (reserved, words) in [
        (
            -(20 << 20),
            "shrank by 20.0 MiB (+61.0 MiB accessible, +59.0 MiB in RAM).\n",
        ),
        (
            0,
            "did not grow (+61.0 MiB accessible, +59.0 MiB in RAM).\n",
        ),
    ] {
        found.growth.reserved_bytes = reserved;
        let report = Report::new(&found, By::Stack, &world, &mut names(&mut log));
        let printed = print(|out| report.write_text(out, Screen::PLAIN, Detail::Leaks));
        assert!(printed.contains(words), "{printed}");
    }
}

#[test]
fn rows_that_look_alike_are_one_line() {
    let mut log = log();
    let (found, world) = leaks(&mut log, Options::default()).expect("a good log");
    let [leak, plateau, _] = &found.rows[..] else {
        panic!("{found:#?}");
    };
    // A smaller one of the same name as the first, and one between them.
    let twin = plateau.clone();
    let mut other = leak.clone();
    other.verdict = plateau.verdict;
    other.held_bytes = plateau.held_bytes * 3 / 2;
    let rows = vec![other, plateau.clone(), twin];
    let found = Leaks::new(found.window_s, found.growth, rows, None);
    let report = Report::new(&found, By::Stack, &world, &mut names(&mut log));
    let printed = print(|out| report.write_text(out, Screen::PLAIN, Detail::Leaks));
    let lines: Vec<&str> = printed.lines().skip(4).collect();
    assert_eq!(
        lines,
        [
            "    plateau  2.1 MiB held  0 % given back  main (wor\\nker)  (2 stacks)",
            "    plateau  1.5 MiB held  0 % given back  grow ← pool::get(unsigned long) ← \
             decode\\x1b]0;owned\\x07 (wor\\nker)",
        ],
        "{printed}"
    );
}

#[test]
fn leaks_adds_up_by_other_things() {
    let mut printed = String::new();
    for by in [By::Module, By::Thread, By::Kind] {
        let report = report(by, Some(2));
        printed += &print(|out| report.write_text(out, Screen::PLAIN, Detail::All));
        printed += "\n";
    }
    compare("leaks-by.txt", &printed);
}

#[test]
fn maps_shows_births() {
    let mut log = log();
    let at = Some(Nanos(20_500_000_000));
    let (spaces, world) = maps_at(&mut log, at, None).expect("a good log");
    let maps = Maps::new(&spaces, &world, &mut names(&mut log));
    compare(
        "maps.txt",
        &print(|out| maps.write_text(out, Screen::PLAIN)),
    );
    compare("maps.json", &print(|out| views::write_json(out, &maps)));
}

#[test]
fn timeline_draws_or_counts() {
    let printed = |name: &str, screen: Screen, json: bool| {
        let mut log = log();
        let (usage, world) = usage(&mut log, points(screen, json), 4).expect("a good log");
        let timeline = Timeline::new(&usage, &world, &mut names(&mut log));
        let text = print(|out| match json {
            true => views::write_json(out, &timeline),
            false => timeline.write_text(out, screen),
        });
        compare(name, &text);
    };
    printed("timeline.txt", Screen::PLAIN, false);
    printed("timeline-terminal.txt", TERMINAL, false);
    printed("timeline.json", Screen::PLAIN, true);
}

#[test]
fn who_tells_a_life_through_a_move() {
    let mut log = log();
    let (found, world) = who(&mut log, Question::about(story::MOVED_TO)).expect("a good log");
    let life = Life::new(story::MOVED_TO, &found, &world, &mut names(&mut log));
    compare("who.txt", &print(|out| life.write_text(out, Screen::PLAIN)));
    compare("who.json", &print(|out| views::write_json(out, &life)));
    let (spaces, world) = maps_at(&mut log, None, None).expect("a good log");
    let near = nearest(Addr(0x5554_ffff_f000), &spaces, &world).expect("something is mapped");
    compare("who-nearest.txt", &format!("{near}\n"));
}

#[test]
fn events_are_straces_lines_or_json() {
    for (name, format) in [
        ("events.txt", Format::Strace),
        ("events.json", Format::Json),
    ] {
        let text = print(|out| {
            let mut events = Events::new(out, format);
            replay(&mut log(), &mut events).expect("a good log");
            events.finish()
        });
        // The first of them: all would be hundreds of lines.
        let first: String = text.split_inclusive('\n').take(16).collect();
        compare(name, &first);
        assert_eq!(text.lines().count(), story::EVENTS);
    }
}

#[test]
fn verify_says_drift_and_where() {
    let (good, _) = verify(&mut log()).expect("a good log");
    let mut drifted = LogReader::open(Cursor::new(story::drifted())).expect("a log");
    let (bad, _) = verify(&mut drifted).expect("a good log");
    let printed = print(|out| {
        views::verify::write_text(out, &good, Screen::PLAIN)?;
        writeln!(out)?;
        views::verify::write_text(out, &bad, Screen::PLAIN)
    });
    compare("verify.txt", &printed);
    compare("verify.json", &print(|out| views::write_json(out, &bad)));
}

#[test]
fn info_tells_what_a_log_is() {
    let mut info = views::info::gather(&mut log()).expect("a good log");
    // How well a block compresses is not this test's business.
    info.log_bytes = LogBytes {
        events: 2000,
        stacks: 100,
        modules: 200,
        symbols: 300,
        other: 400,
        total: 3000,
    };
    compare(
        "info.txt",
        &print(|out| views::info::write_text(out, &info, Screen::PLAIN)),
    );
    compare("info.json", &print(|out| views::write_json(out, &info)));
    // What there is nothing to say of is not said.
    assert!(info.held_ns < 500_000, "{}", info.held_ns);
    info.uncovered.clear();
    let text = print(|out| views::info::write_text(out, &info, Screen::PLAIN));
    assert!(!text.contains("for checkpoints"), "{text}");
    info.held_ns = 2_000_000;
    let text = print(|out| views::info::write_text(out, &info, Screen::PLAIN));
    assert!(
        text.contains("serving them, 0.002 s for checkpoints"),
        "{text}"
    );
    assert!(!text.contains("not covered"), "{text}");
}

#[test]
fn an_attached_log_is_told_as_what_it_is() {
    let mut log = LogReader::open(Cursor::new(attached::log())).expect("the story is a log");
    let mut names = names(&mut log);
    let mut info = views::info::gather(&mut log).expect("a good log");
    info.log_bytes = LogBytes::default();
    let (verified, _) = verify(&mut log).expect("a good log");
    let (leaked, world) = leaks(&mut log, Options::default()).expect("a good log");
    let report = Report::new(&leaked, By::Stack, &world, &mut names);
    let (used, world) = usage(&mut log, 12, 4).expect("a good log");
    let timeline = Timeline::new(&used, &world, &mut names);
    let (spaces, world) = maps_at(&mut log, None, None).expect("a good log");
    let maps = Maps::new(&spaces, &world, &mut names);
    let question = Question::about(Addr(attached::WEIGHTS));
    let (lives, world) = who(&mut log, question).expect("a good log");
    let life = Life::new(question.addr, &lives, &world, &mut names);
    let printed = print(|out| {
        let plain = Screen::PLAIN;
        views::info::write_text(out, &info, plain)?;
        writeln!(out, "\n== verify")?;
        views::verify::write_text(out, &verified, plain)?;
        writeln!(out, "\n== leaks")?;
        report.write_text(out, plain, Detail::All)?;
        writeln!(out, "\n== timeline")?;
        timeline.write_text(out, plain)?;
        timeline.write_text(
            out,
            Screen {
                colour: false,
                ..TERMINAL
            },
        )?;
        writeln!(out, "\n== maps")?;
        let text = print(|out| maps.write_text(out, plain));
        let lines = text.lines().filter(|line| !line.contains("mmap at "));
        lines
            .into_iter()
            .try_for_each(|line| writeln!(out, "{line}"))?;
        writeln!(out, "\n== who")?;
        life.write_text(out, plain)
    });
    compare("attached.txt", &printed);
    let json = print(|out| {
        views::write_json(out, &info)?;
        views::write_json(out, &verified)
    });
    compare("attached.json", &json);
}
