//! Every victim under both mechanisms: its exit code and its truth are as bare, nothing is lost, the
//! drift is 0, and `leaks` gives the victim's own sums.

use crate::common::{Recording, Run, victim_command};

/// How far a victim's sums can be compared.
#[derive(Clone, Copy, PartialEq)]
enum Sums {
    /// Bytes and numbers of mappings.
    All,
    /// Bytes only: it grows mappings by mremap, and that is a birth of its own.
    Bytes,
}

fn check(line: &str, mechanism: &str, code: i32, sums: Sums) {
    let recording = Recording::with(&["--mechanism", mechanism], &victim_command(line), b"");
    let errors = recording.run.errors();
    assert_eq!(
        recording.run.code(),
        code,
        "{line}: {}{errors}",
        recording.run.text()
    );
    recording.assert_exact();
    assert_eq!(recording.json(&["info"])["mechanism"], mechanism);
    let leaks = recording.json(&["leaks", "--top", "100000"]);
    recording.truth().assert_told_by(&leaks, sums == Sums::All);
}

macro_rules! victims {
    ($($name:ident: $line:literal, $code:literal, $sums:ident;)*) => {
        mod seccomp {
            use super::{Sums, check};
            $(#[test] fn $name() { check($line, "seccomp", $code, Sums::$sums); })*
        }
        mod syscall {
            use super::{Sums, check};
            $(#[test] fn $name() { check($line, "syscall", $code, Sums::$sums); })*
        }
        /// The victims themselves: bare, each ends as its line in the table says and tells its truth.
        mod bare {
            $(#[test] fn $name() { super::bare($line, $code); })*
        }
    };
}

fn bare(line: &str, code: i32) {
    let run = Run::of(&mut victim_command(line));
    assert_eq!(
        run.shell_code(),
        code,
        "{line}: {}{}",
        run.text(),
        run.errors()
    );
    crate::common::truth::Truth::read(&run.text());
}

victims! {
    raw_leak: "raw_leak 200 65536 100 4 64", 0, All;
    hooked: "hooked 4000 0", 0, All;
    thread_leak: "thread_leak 64 20", 0, All;
    partial_release: "partial_release", 0, All;
    align_trim: "align_trim", 0, All;
    fork_worker: "fork_worker 100 65536 3", 0, All;
    remap: "remap", 0, Bytes;
    brk_moves: "brk_moves", 0, All;
    shared: "shared", 0, All;
    family_vfork: "family vfork 10", 0, All;
    family_spawn: "family spawn 10", 0, All;
    family_clone_vm: "family clone-vm 30", 0, All;
    family_exec_from_a_thread: "family exec-thread 8", 4, All;
    untraced: "untraced", 0, All;
    leader_exit: "leader_exit", 9, All;
    exit_storm: "exit_storm", 42, All;
    exit_storm_by_sigkill: "exit_storm 8 265", 137, All;
    exit_storm_by_sigterm: "exit_storm 8 271", 143, All;
    int80: "int80", 0, Bytes;
    nolibc32: "nolibc32", 5, All;
    failing: "failing", 0, All;
    cut_off_by_exit: "cut_off exit", 0, All;
    cut_off_by_sigkill: "cut_off kill", 0, All;
    files_cut_off_by_sigkill: "cut_off file 30 1", 0, All;
    crowd: "crowd 100", 0, All;
    ignored: "ignored", 0, All;
    sandbox: "sandbox", 0, All;
    names: "names", 0, All;
    grows_down: "grows_down", 0, All;
    signals: "signals 200", 0, All;
    storm: "storm 8 1000", 0, Bytes;
    storm_with_forks: "storm 4 1500 7 15", 0, Bytes;
    race_brk: "race brk 4 500", 0, All;
    race_protect: "race protect 4 500", 0, All;
    race_fixed: "race fixed 4 500", 0, All;
    race_lockall: "race lockall 4 500", 0, All;
    churn: "churn 1000 1 20", 0, All;
    churn_in_threads: "churn 200 8", 0, All;
}

#[test]
fn what_the_kernel_maps_alone_is_counted_apart() {
    let recording = Recording::of(&victim_command("grows_down 64 3072"));
    let verify = recording.json(&["verify"]);
    let grown = recording.truth().last["grown_bytes"]
        .as_u64()
        .expect("a number");
    let kernel = verify["kernel_bytes"].as_u64().expect("a number");
    assert!(
        kernel >= grown,
        "the kernel grew {grown} bytes by itself, verify says {kernel}"
    );
}

#[test]
fn errors_of_failing_calls_are_the_same_as_bare() {
    let bare = Run::of(&mut victim_command("failing"));
    let recording = Recording::of(&victim_command("failing"));
    let mut mine = crate::common::truth::Truth::read(&bare.text()).last;
    let mut theirs = recording.truth().last;
    mine["pid"] = 0.into();
    theirs["pid"] = 0.into();
    assert_eq!(mine, theirs);
}

#[test]
fn a_filter_of_the_program_s_own_finds_no_tracer() {
    for mechanism in ["seccomp", "syscall"] {
        let record = ["--mechanism", mechanism];
        let truth = Recording::with(&record, &victim_command("sandbox"), b"").truth();
        for call in ["getppid", "map"] {
            assert_eq!(truth.last[call], "ENOSYS", "{call} under {mechanism}");
        }
    }
}

#[test]
fn threads_have_the_names_that_they_gave_themselves() {
    let recording = Recording::of(&victim_command("names 3"));
    let leaks = recording.json(&["leaks", "--by", "thread", "--top", "100"]);
    let held = |name: &str| {
        let rows = leaks["stacks"].as_array().expect("rows");
        let of_thread = |label: &str| label.starts_with(&format!("{name}/"));
        let mut rows = rows
            .iter()
            .filter(|r| r["label"].as_str().is_some_and(of_thread));
        rows.next().map(|row| row["held_mappings"].as_u64())
    };
    for n in 0..3 {
        // Its own two, and what the C library mapped for it.
        assert!(held(&format!("decoder-{n}")) >= Some(Some(2)), "{leaks:#}");
    }
}

#[test]
fn signals_that_are_ignored_break_no_call_off() {
    let program = victim_command("ignored");
    let bare = crate::common::truth::Truth::read(&Run::of(&mut victim_command("ignored")).text());
    for mechanism in ["seccomp", "syscall"] {
        let recording = Recording::with(&["--mechanism", mechanism], &program, b"");
        let truth = recording.truth();
        for word in ["answers", "stopped"] {
            assert_eq!(
                truth.last[word], bare.last[word],
                "{word} under {mechanism}"
            );
        }
    }
}

#[test]
fn every_space_has_a_checkpoint() {
    let recording = Recording::of(&victim_command("fork_worker 20 65536 4"));
    let verify = recording.json(&["verify"]);
    let spaces = verify["spaces"].as_array().expect("spaces");
    assert_eq!(spaces.len(), 5, "a parent and four workers: {verify:#}");
    assert!(
        verify["checkpoints"].as_u64() >= Some(5),
        "one at the least for each of the spaces: {verify:#}"
    );
    assert_eq!(recording.json(&["info"])["spaces"], 5);
}
