//! The command line on logs that were written for the purpose: exit codes, errors with their remedies,
//! cut and damaged logs, and what goes to which stream. Nothing is recorded here.

#[path = "../replay/tests/golden/story.rs"]
mod story;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// A folder with a log in it.
struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(&story::log())
    }

    fn with(log: &[u8]) -> Fixture {
        let dir = TempDir::new().expect("a folder");
        fs::write(dir.path().join("log"), log).expect("a file");
        Fixture { dir }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(&self.log(), args)
    }
}

/// What a command left.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// `maptrail COMMAND LOG MORE`.
fn run(log: &Path, args: &[&str]) -> Ran {
    let (command, more) = args.split_first().expect("a command");
    let output = maptrail()
        .arg(command)
        .arg(log)
        .args(more)
        .output()
        .expect("maptrail runs");
    Ran {
        code: output.status.code().expect("not killed"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

fn maptrail() -> Command {
    let mut command = Command::cargo_bin("maptrail").expect("the program");
    command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
    command
}

const READERS: [&[&str]; 8] = [
    &["info"],
    &["verify"],
    &["leaks"],
    &["maps"],
    &["timeline"],
    &["events"],
    &["events", "--format", "json"],
    &["who", "7f0080000000"],
];

impl Ran {
    /// Asserts an error of ours: exit code 2, nothing on stdout, all of `words` in one clear line.
    fn refused(&self, words: &[&str]) {
        assert_eq!(self.code, 2, "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        assert!(self.err.starts_with("maptrail: "), "{}", self.err);
        for word in words {
            assert!(self.err.contains(word), "no {word:?} in: {}", self.err);
        }
    }
}

#[test]
fn every_reader_reads_a_good_log_without_a_word_on_stderr() {
    let fixture = Fixture::new();
    for args in READERS {
        let ran = fixture.run(args);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{args:?}");
        assert!(!ran.out.is_empty(), "{args:?}");
        assert!(!ran.out.contains('\x1b'), "{args:?} colours a pipe");
    }
    assert_eq!(fixture.run(&["events"]).out.lines().count(), story::EVENTS);
}

#[test]
fn json_is_json() {
    let fixture = Fixture::new();
    for args in [
        &["info"][..],
        &["verify"],
        &["leaks"],
        &["maps"],
        &["timeline"],
        &["who", "7f0080000000"],
    ] {
        let ran = fixture.run(&[args, &["--json"]].concat());
        let parsed: Result<Value, _> = serde_json::from_str(&ran.out);
        assert!(parsed.is_ok_and(|v| v.is_object()), "{args:?}: {}", ran.out);
    }
}

#[test]
fn what_is_no_log_is_refused_with_the_remedy() {
    for args in READERS {
        Fixture::with(b"").run(args).refused(&["empty"]);
        Fixture::with(b"a letter\n")
            .run(args)
            .refused(&["not a maptrail log", "record"]);
        Fixture::with(&[0; 9000])
            .run(args)
            .refused(&["not a maptrail log"]);
        let fixture = Fixture::new();
        run(&fixture.dir.path().join("gone"), args).refused(&["gone", "No such file"]);
        run(fixture.dir.path(), args).refused(&["directory"]);
    }
}

#[test]
fn a_newer_major_version_is_named() {
    let mut log = story::log();
    // After the eight letters of `MAPTRAIL`, as the format's text says.
    log[8..10].copy_from_slice(&7_u16.to_le_bytes());
    for args in READERS {
        let ran = Fixture::with(&log).run(args);
        ran.refused(&["version 7", "version 1", "newer maptrail"]);
    }
}

#[test]
fn a_cut_log_is_read_with_a_warning() {
    let log = story::log();
    // Every byte of the small log would take long with a process each: a spread, and both ends.
    let cuts = (1..log.len()).step_by(97).chain([log.len() - 1]);
    for cut in cuts {
        let fixture = Fixture::with(&log[..cut]);
        for args in [&["info", "--json"][..], &["leaks"]] {
            let ran = fixture.run(args);
            assert!(!ran.err.contains("panicked"), "cut at {cut}: {}", ran.err);
            match ran.code {
                0 if args[0] == "info" => {
                    let info: Value = serde_json::from_str(&ran.out).expect("JSON");
                    let complete = info["complete"].as_bool().expect("a word");
                    assert_eq!(
                        !complete,
                        ran.err.contains("warning"),
                        "cut at {cut}: {}",
                        ran.err
                    );
                }
                0 => assert!(
                    ["leak", "Leak", "Nothing to judge"]
                        .iter()
                        .any(|word| ran.out.contains(word)),
                    "{}",
                    ran.out
                ),
                _ => ran.refused(&[]),
            }
        }
    }
    let fixture = Fixture::with(&log[..log.len() / 2]);
    let ran = fixture.run(&["leaks"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.err.contains("no end") && ran.err.contains("lost"),
        "{}",
        ran.err
    );
}

#[test]
fn a_flipped_byte_never_goes_unsaid_as_truth() {
    let log = story::log();
    let good = Fixture::new().run(&["leaks", "--json"]).out;
    for at in (0..log.len()).step_by(53) {
        let mut flipped = log.clone();
        flipped[at] ^= 0x10;
        let ran = Fixture::with(&flipped).run(&["leaks", "--json"]);
        assert!(!ran.err.contains("panicked"), "byte {at}: {}", ran.err);
        let said = ran.code == 2 || ran.err.contains("warning");
        assert!(
            said || ran.out == good,
            "byte {at} changed the answer in silence"
        );
    }
}

#[test]
fn times_are_understood_and_bounded() {
    let fixture = Fixture::new();
    for time in ["0s", "12.5s", "-5s", "60s", "2023-11-14T22:13:50Z"] {
        let ran = fixture.run(&["maps", "--at", time]);
        assert_eq!(ran.code, 0, "{time}: {}", ran.err);
    }
    for time in ["61s", "-61s", "2020-01-01T00:00:00Z"] {
        for command in [&["maps"][..], &["who", "7f0080000000"]] {
            let ran = fixture.run(&[command, &["--at", time]].concat());
            ran.refused(&["window", "60.0 s", "2023-11-14T22:13:20"]);
        }
    }
    let ran = fixture.run(&["maps", "--at", "soon"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("soon") && ran.err.contains("12.5s"),
        "{}",
        ran.err
    );
}

#[test]
fn an_address_that_was_never_mapped_is_told_its_neighbour() {
    let fixture = Fixture::new();
    fixture
        .run(&["who", "0x555500005000"])
        .refused(&["never mapped", "555500000000-555500004000"]);
    // Nothing is near.
    let far = fixture.run(&["who", "0x10"]);
    far.refused(&["never mapped"]);
    assert!(!far.err.contains("nearest"), "{}", far.err);
    let ran = fixture.run(&["who", "here"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("hexadecimal"), "{}", ran.err);
}

#[test]
fn drift_exits_with_1() {
    let ran = Fixture::with(&story::drifted()).run(&["verify"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("Drift: 36.0 KiB"), "{}", ran.out);
}

#[test]
fn leaks_fail_a_job_when_asked() {
    let fixture = Fixture::new();
    for (args, code) in [
        (&["--fail-on", "leak"][..], 86),
        (&["--fail-over", "59MiB"], 86),
        (&["--fail-over", "60MiB"], 0),
        (&["--fail-over", "1KiB", "--fail-exit-code", "7"], 7),
        (&["--fail-on", "leak", "--min-age", "59s"], 0),
        (&[], 0),
    ] {
        let ran = fixture.run(&[&["leaks"], args].concat());
        assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
        assert!(ran.out.contains("60.0 s"), "{args:?} says nothing");
    }
    let ran = fixture.run(&["leaks", "--fail-over", "much"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("64KiB"), "{}", ran.err);
}

#[test]
fn colour_only_where_it_is_wanted() {
    let fixture = Fixture::new();
    let always = fixture.run(&["leaks", "--color", "always"]).out;
    assert!(always.contains("\x1b["));
    let never = fixture.run(&["leaks", "--color", "never"]).out;
    assert!(!never.contains('\x1b'));
    let mut command = maptrail();
    command.env("NO_COLOR", "1").arg("leaks").arg(fixture.log());
    let output = command.output().expect("maptrail runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), never);
}

/// The code and stderr of `maptrail COMMAND LOG MORE` whose stdout has no reader from the start.
fn run_unread(log: &Path, args: &[&str]) -> (Option<i32>, String) {
    let (command, more) = args.split_first().expect("a command");
    let (reader, unread) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Process::new(assert_cmd::cargo::cargo_bin("maptrail"))
        .arg(command)
        .arg(log)
        .args(more)
        .stdout(unread)
        .output()
        .expect("maptrail runs");
    let said = String::from_utf8(output.stderr).expect("text");
    (output.status.code(), said)
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let fixture = Fixture::new();
    for args in READERS {
        let ended = run_unread(&fixture.log(), args);
        assert_eq!(ended, (Some(0), String::new()), "{args:?}");
    }
}

#[test]
fn a_closed_pipe_does_not_turn_a_failed_check_into_a_good_one() {
    let (good, drifted) = (Fixture::new(), Fixture::with(&story::drifted()));
    for (fixture, args, code) in [
        (&drifted, &["verify"][..], 1),
        (&drifted, &["verify", "--json"], 1),
        (&good, &["leaks", "--fail-on", "leak"], 86),
        (&good, &["leaks", "--json", "--fail-over", "59MiB"], 86),
        (&good, &["leaks", "--fail-over", "60MiB"], 0),
    ] {
        let ended = run_unread(&fixture.log(), args);
        assert_eq!(ended, (Some(code), String::new()), "{args:?}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    for args in [
        &["leaks"][..],
        &["no-such-command"],
        &["record"],
        &["leaks", "a", "--by", "moon"],
        &["leaks", "a", "--top", "0"],
    ] {
        let output = maptrail().args(args).output().expect("maptrail runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        // What is wrong is the arguments, not that there is no log `a`.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Usage") || said.contains("--help"), "{said}");
    }
    let commands = [
        "record", "attach", "leaks", "maps", "timeline", "who", "events", "verify", "info",
    ];
    let help = maptrail().arg("--help").output().expect("maptrail runs");
    let help = String::from_utf8(help.stdout).expect("text");
    for command in commands {
        assert!(help.contains(command), "{help}");
        let own = maptrail()
            .args([command, "--help"])
            .output()
            .expect("maptrail runs");
        assert_eq!(own.status.code(), Some(0));
        assert!(
            BufReader::new(&own.stdout[..]).lines().count() > 5,
            "{command}"
        );
    }
}

#[test]
fn help_says_what_would_surprise() {
    for (args, words) in [
        (&["--help"][..], &["86 ", "126, 127 ", "128+N "][..]),
        (&["record", "--help"], &["no names of functions"]),
        (&["maps", "--help"], &["all are shown"]),
        (&["who", "--help"], &["are shown, one after the other"]),
    ] {
        let help = maptrail().args(args).output().expect("maptrail runs");
        // Lines are wrapped to the terminal.
        let help = String::from_utf8(help.stdout).expect("text");
        let help: Vec<&str> = help.split_whitespace().collect();
        let help = help.join(" ") + " ";
        for word in words {
            assert!(
                help.contains(word),
                "{args:?} does not say {word:?}: {help}"
            );
        }
    }
}
