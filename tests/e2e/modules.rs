//! Stacks go through their modules whatever became of the files: deleted, replaced, never on a disk, moved
//! in memory, seen by a user who may open none of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::attach::{Started, attach};
use crate::common::stage::Stage;
use crate::common::truth::{functions, stacks};
use crate::common::{Run, command, have_or_skip, is_root, json, recorded, skip, until, victim};

/// A program that leaks for very long, a page each half millisecond.
const LEAKING: [&str; 4] = ["100000000", "4096", "500", "2"];

/// The places in the program that the stack of the leak goes through, innermost first. The stack reaches
/// its root without a guess.
fn places(log: &Path, said: &str) -> Vec<String> {
    let leaks = json(log, &["leaks"]);
    let worst = stacks(&leaks).first().unwrap_or_else(|| panic!("{said}"));
    let frames = worst["frames"].as_array().expect("frames");
    for frame in frames {
        assert_eq!(frame["guessed"], false, "{worst:#}");
        assert_eq!(frame["truncated"], false, "{worst:#}");
    }
    // libc is between the program and the kernel, and between its start and its main function.
    let of_libc = |frame: &serde_json::Value| {
        let module = frame["module"].as_str().expect("a module");
        module.contains("libc.so")
    };
    let own = frames
        .iter()
        .filter(|frame| !of_libc(frame) && frame["inlined"] == false);
    own.map(|frame| frame["offset"].as_str().expect("an offset").to_owned())
        .collect()
}

/// What [`places`] should be: those of the same program, untouched.
fn expected() -> Vec<String> {
    let stage = Stage::new();
    let log = stage.path("log");
    let program = command(&stage.leaking, ["2000", "4096", "10", "2"]);
    let run = Run::of(&mut recorded(&[], &log, &program));
    let leaks = json(&log, &["leaks"]);
    let worst = stacks(&leaks).first().expect("a stack");
    assert!(functions(worst).any(|f| f == "leak_raw"), "{leaks:#}");
    let places = places(&log, &run.errors());
    assert!(places.len() >= 4, "{leaks:#}");
    places
}

/// Starts `leaking`, lets `happen` happen to its file, and attaches; as somebody else if they are root.
fn attached(stage: &Stage, leaking: &mut Command, happen: impl FnOnce(), as_nobody: bool) {
    let leaking = Started::of(leaking, stage.path("output"));
    until("it is the victim that runs", || {
        let name = fs::read_to_string(format!("/proc/{}/comm", leaking.pid())).ok()?;
        (name == "raw_leak\n").then_some(())
    });
    happen();
    let log = match as_nobody {
        true => stage.home().join("log"),
        false => stage.path("log"),
    };
    let mut attach = attach(leaking.pid(), &log, "500ms");
    let run = match as_nobody {
        true => {
            let program = command(&stage.maptrail, attach.get_args());
            Run::of(&mut stage.as_nobody(&program))
        }
        false => Run::of(&mut attach),
    };
    assert_eq!(run.code(), 0, "{}", run.errors());
    assert_eq!(places(&log, &run.errors()), expected());
}

#[test]
fn a_deleted_program() {
    let stage = Stage::new();
    let delete = || fs::remove_file(&stage.leaking).expect("it is there");
    attached(&stage, &mut command(&stage.leaking, LEAKING), delete, false);
}

#[test]
fn a_replaced_program() {
    let stage = Stage::new();
    let replace = || {
        let other = stage.path("other");
        fs::copy(victim("quiet"), &other).expect("a copy");
        fs::rename(&other, &stage.leaking).expect("it is replaced");
    };
    attached(
        &stage,
        &mut command(&stage.leaking, LEAKING),
        replace,
        false,
    );
}

/// Its memory is all that such a user may read of it.
#[test]
fn a_deleted_program_that_nobody_may_open() {
    if !is_root() {
        return skip("privileges can be dropped by root only");
    }
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if !["", "0"].contains(&yama.trim()) {
        return skip("this kernel lets ordinary users trace their children only");
    }
    if !have_or_skip("setpriv") {
        return;
    }
    let stage = Stage::new();
    let mut leaking = stage.as_nobody(&command(&stage.leaking, LEAKING));
    let delete = || fs::remove_file(&stage.leaking).expect("it is there");
    attached(&stage, &mut leaking, delete, true);
}

#[test]
fn a_program_in_a_file_without_a_name() {
    if !have_or_skip("python3") {
        return;
    }
    let stage = Stage::new();
    let script = "
import os, sys
code = open(sys.argv[1], 'rb').read()
fd = os.memfd_create('raw_leak')
os.write(fd, code)
os.execv(f'/proc/self/fd/{fd}', ['raw_leak'] + sys.argv[2:])";
    let mut leaking = command("python3", ["-c", script]);
    leaking.arg(&stage.leaking).args(LEAKING);
    let started = Started::of(&mut leaking, stage.path("output"));
    until("the program runs", || {
        let exe = fs::read_link(format!("/proc/{}/exe", started.pid())).ok()?;
        exe.to_str()?.starts_with("/memfd:").then_some(())
    });
    let log = stage.path("log");
    let run = Run::of(&mut attach(started.pid(), &log, "500ms"));
    assert_eq!(run.code(), 0, "{}", run.errors());
    assert_eq!(places(&log, &run.errors()), expected());
}

fn with_moved_text(stage: &Stage, args: &[&str]) -> Command {
    let preload = format!("LD_PRELOAD={}", victim("move_text.so").display());
    let mut leaking = command("env", [preload]);
    leaking.arg(&stage.leaking).args(args);
    leaking
}

#[test]
fn a_program_whose_text_was_moved_before_anybody_looked() {
    let stage = Stage::new();
    let mut leaking = with_moved_text(&stage, &LEAKING);
    attached(&stage, &mut leaking, || {}, false);
}

#[test]
fn a_program_that_moves_its_text_while_it_is_recorded() {
    let stage = Stage::new();
    let log = stage.path("log");
    let leaking = with_moved_text(&stage, &["2000", "4096", "10", "2"]);
    let run = Run::of(&mut recorded(&[], &log, &leaking));
    assert_eq!(places(&log, &run.errors()), expected());
}
