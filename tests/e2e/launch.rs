//! A recorded program is started as it would be without maptrail, and ends as it would.

use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use tempfile::TempDir;

use crate::common::{
    Recording, Run, assert_exact, command, have_or_skip, is_root, recorded, skip, until, victim,
    victim_command,
};

fn shell(script: &str) -> Command {
    command("sh", ["-c", script])
}

#[test]
fn exit_codes_are_handed_on() {
    for code in [0, 1, 2, 7, 86, 126, 127, 255] {
        let recording = Recording::of(&shell(&format!("exit {code}")));
        assert_eq!(recording.run.code(), code, "{}", recording.run.errors());
        recording.assert_exact();
    }
}

#[test]
fn death_by_a_signal_gives_128_and_its_number() {
    for (name, number) in [
        ("KILL", 9),
        ("SEGV", 11),
        ("TERM", 15),
        ("ABRT", 6),
        ("PIPE", 13),
        ("USR1", 10),
    ] {
        let recording = Recording::of(&shell(&format!("kill -{name} $$")));
        assert_eq!(
            recording.run.shell_code(),
            128 + number,
            "{name}: {}",
            recording.run.errors()
        );
        recording.assert_exact();
    }
}

#[test]
fn input_and_output_pass_through_untouched() {
    let data: Vec<u8> = (0..1_000_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let recording = Recording::with(&[], &command("cat", ["-"]), &data);
    assert_eq!(recording.run.code(), 0);
    assert!(recording.run.stdout == data, "cat gave back something else");
}

#[test]
fn standard_error_and_output_stay_apart() {
    let recording = Recording::of(&shell("echo to-out; echo to-err >&2"));
    assert_eq!(recording.run.text(), "to-out\n");
    assert!(recording.run.errors().lines().any(|l| l == "to-err"));
}

#[test]
fn arguments_need_not_be_text() {
    let odd = std::ffi::OsString::from_vec(vec![b'a', 0xff, b'\n', b'\'', 0xc3]);
    let args = [
        std::ffi::OsString::from("%s|"),
        odd,
        "".into(),
        "--json".into(),
        "-o".into(),
    ];
    let program = command("printf", &args);
    let bare = Run::of(&mut command("printf", &args));
    let recording = Recording::of(&program);
    assert_eq!(recording.run.stdout, bare.stdout);
    recording.assert_exact();
}

/// Runs `probe` bare and recorded, both started by launch_as with `words`, and compares line by line.
fn compare_probe(words: &[&str]) {
    let dir = TempDir::new().expect("a temporary directory");
    let launch = |rest: &[&std::ffi::OsStr]| {
        let mut launch = command(victim("launch_as"), words);
        launch
            .arg("--")
            .args(rest)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("ODD", "a=b c");
        launch.current_dir(dir.path());
        launch
    };
    let probe = victim("probe");
    let bare = Run::of(&mut launch(&[
        probe.as_os_str(),
        "one".as_ref(),
        "two three".as_ref(),
    ]));
    let log = dir.path().join("log");
    let record = recorded(&[], &log, &command(&probe, ["one", "two three"]));
    let words_of_record: Vec<_> = std::iter::once(record.get_program())
        .chain(record.get_args())
        .collect();
    let traced = Run::of(&mut launch(&words_of_record));
    assert_eq!(
        traced.shell_code(),
        bare.shell_code(),
        "{words:?}: {}",
        traced.errors()
    );
    let differing: Vec<String> = diff(&bare.text(), &traced.text());
    assert!(
        differing.is_empty(),
        "started with {words:?} the program sees:\n{}\nmaptrail said: {}",
        differing.join("\n"),
        traced.errors()
    );
    if !words.contains(&"close=1") {
        assert!(
            bare.text().contains("argument 2: two three"),
            "{}",
            bare.text()
        );
    }
    assert_exact(&log, &traced.errors());
}

/// Lines that only one of the two has.
fn diff(bare: &str, recorded: &str) -> Vec<String> {
    let only = |mark: &str, a: &str, b: &str| -> Vec<String> {
        a.lines()
            .filter(|l| !b.lines().any(|m| m == *l))
            .map(|l| format!("{mark} {l}"))
            .collect()
    };
    [
        only("bare:    ", bare, recorded),
        only("recorded:", recorded, bare),
    ]
    .concat()
}

macro_rules! probes {
    ($($name:ident: [$($word:literal),*];)*) => {
        /// What `probe` sees is the same as bare, whatever state it is started in.
        mod sees_the_same {
            $(#[test] fn $name() { super::compare_probe(&[$($word),*]); })*
        }
    };
}

probes! {
    plainly: [];
    with_an_inherited_descriptor: ["open=5", "open=9"];
    with_standard_input_closed: ["close=0"];
    with_standard_output_closed: ["close=1"];
    with_standard_error_closed: ["close=2"];
    with_all_standard_descriptors_closed_but_output: ["close=0", "close=2"];
    with_ignored_signals: ["ignore=13", "ignore=1", "ignore=2", "ignore=3", "ignore=20"];
    with_sigchld_ignored: ["ignore=17"];
    with_real_time_signals_ignored: ["ignore=34", "ignore=64"];
    with_blocked_signals: ["block=2", "block=10", "block=14", "block=15", "block=17", "block=40"];
    with_another_nice_value: ["nice=4"];
    with_other_limits: ["limit=0:1000", "limit=3:1048576", "limit=7:200", "hard=4:0", "hard=8:65536"];
    with_an_unlimited_stack: ["limit=3:18446744073709551615"];
    with_few_descriptors: ["hard=7:16"];
    with_another_umask: ["umask=027"];
    without_randomised_addresses: ["aslr-off"];
}

#[test]
fn the_process_group_and_the_session_are_those_that_it_was_started_in() {
    let dir = TempDir::new().expect("a temporary directory");
    for (word, session) in [("group", false), ("session", true)] {
        let probe = command(victim("probe"), ["--group"]);
        let record = recorded(&["--force"], &dir.path().join("log"), &probe);
        for program in [probe, record] {
            let mut launch = command(victim("launch_as"), [word, "--"]);
            let run = Run::of(launch.arg(program.get_program()).args(program.get_args()));
            let text = run.text();
            let numbers: Vec<u32> = text
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
            assert_eq!(
                numbers[0],
                run.pid,
                "{program:?} under {word}: {}",
                run.errors()
            );
            assert_eq!(
                numbers[1] == run.pid,
                session,
                "{program:?} under {word}: {}",
                run.errors()
            );
        }
    }
}

#[test]
fn a_user_without_rights_sees_the_same() {
    if !is_root() {
        return skip("only root can become another user");
    }
    let dir = TempDir::new().expect("a temporary directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir.path(), open).expect("a mode can be set");
    // Copies that another user can reach, wherever this repository lies.
    let reach = |from: &std::path::Path| {
        let to = dir.path().join(from.file_name().expect("a name"));
        std::fs::copy(from, &to).expect("a copy");
        to
    };
    let probe = reach(&victim("probe"));
    let program = reach(env!("CARGO_BIN_EXE_maptrail").as_ref());
    let as_user = |args: Vec<&std::ffi::OsStr>| {
        let mut launch = command(victim("launch_as"), ["user=65534", "--"]);
        launch.args(args).current_dir(dir.path());
        Run::of(&mut launch)
    };
    let log = dir.path().join("log");
    let bare = as_user(vec![probe.as_os_str()]);
    let traced = as_user(vec![
        program.as_os_str(),
        "record".as_ref(),
        "-o".as_ref(),
        log.as_os_str(),
        "--".as_ref(),
        probe.as_os_str(),
    ]);
    assert_eq!(traced.code(), 0, "{}", traced.errors());
    assert_eq!(diff(&bare.text(), &traced.text()), Vec::<String>::new());
    assert_exact(&log, &traced.errors());
}

#[test]
fn privileges_that_the_kernel_withholds_are_said() {
    if !is_root() {
        return skip("set-user-ID programs of others are made by root only");
    }
    let dir = TempDir::new().expect("a temporary directory");
    let mode = |bits| std::os::unix::fs::PermissionsExt::from_mode(bits);
    std::fs::set_permissions(dir.path(), mode(0o777)).expect("a mode can be set");
    let maptrail = dir.path().join("maptrail");
    std::fs::copy(env!("CARGO_BIN_EXE_maptrail"), &maptrail).expect("a copy");
    let program = dir.path().join("program");
    std::fs::copy(victim("nolibc32"), &program).expect("a copy");

    let log = dir.path().join("log");
    let record = |user: &str, mechanism: &str| {
        let mut launch = command(victim("launch_as"), [user, "--"]);
        launch.arg(&maptrail).args(["record", "--mechanism"]);
        launch.args([mechanism, "--force", "-o"]).arg(&log);
        let run = Run::of(launch.arg("--").arg(&program).current_dir(dir.path()));
        assert_eq!(run.code(), 5, "{}", run.errors());
        std::fs::remove_file(&log).expect("a log");
        run.errors()
    };
    // The last one is no set-group-ID program: without group execute the bit asks for locks.
    for (bits, words) in [
        (0o4755, Some("is a set-user-ID program")),
        (0o2755, Some("is a set-group-ID program")),
        (0o2745, None),
        (0o755, None),
    ] {
        std::fs::set_permissions(&program, mode(bits)).expect("a mode can be set");
        for mechanism in ["seccomp", "syscall"] {
            let said = record("user=65534", mechanism);
            match words {
                Some(words) => assert!(said.contains(words), "{bits:o}: {said}"),
                None => assert!(!said.contains("privileges"), "{bits:o}: {said}"),
            }
            let said = record("user=0", mechanism);
            assert!(!said.contains("privileges"), "{bits:o}, as root: {said}");
        }
    }

    // CAP_NET_RAW, as ping has it (struct vfs_cap_data of linux/capability.h).
    let script = "import os, struct, sys; os.setxattr(sys.argv[1], 'security.capability', \
                  struct.pack('<5I', 0x02000001, 1 << 13, 0, 0, 0))";
    let set = Run::of(command("python3", ["-c", script]).arg(&program));
    if !set.status.success() {
        return skip(&format!("no file capabilities here: {}", set.errors()));
    }
    let said = record("user=65534", "seccomp");
    assert!(
        said.contains("is a program with file capabilities"),
        "{said}"
    );
    let said = record("user=0", "seccomp");
    assert!(!said.contains("privileges"), "as root: {said}");
}

#[test]
fn a_relative_path_and_a_name_in_path_are_found_as_a_shell_would() {
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::copy(victim("nolibc32"), dir.path().join("here")).expect("a copy");
    let mut relative = command("./here", [""; 0]);
    relative.current_dir(dir.path());
    assert_eq!(Recording::of(&relative).run.code(), 5);
    let mut by_name = command("here", [""; 0]);
    by_name.env("PATH", dir.path());
    assert_eq!(Recording::of(&by_name).run.code(), 5);
}

#[test]
fn a_script_with_an_interpreter_line_runs() {
    let dir = TempDir::new().expect("a temporary directory");
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/bin/sh\necho \"script $1\"\nexit 6\n").expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).expect("a mode can be set");
    let recording = Recording::of(&command(&script, ["x"]));
    assert_eq!(
        (recording.run.code(), recording.run.text().as_str()),
        (6, "script x\n")
    );
    recording.assert_exact();
}

#[test]
fn record_returns_with_its_command_and_a_daemon_left_behind_goes_on() {
    if !have_or_skip("setsid") {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    // The daemon goes on only when `record` has returned, and then needs memory calls that work.
    let script = "setsid sh -c 'while [ ! -e go ]; do sleep 0.02; done; \"$0\" > out; echo $? > code' \"$0\" \
                  > /dev/null 2>&1 < /dev/null & echo started";
    let mut program = shell(script);
    program.arg(victim("align_trim")).current_dir(dir.path());
    let recording = Recording::of(&program);
    assert_eq!(recording.run.text(), "started\n");
    std::fs::write(dir.path().join("go"), "").expect("a file");
    let code = until("the daemon ends", || {
        std::fs::read_to_string(dir.path().join("code"))
            .ok()
            .filter(|t| t.ends_with('\n'))
    });
    assert_eq!(
        code, "0\n",
        "the daemon's work failed after record had returned"
    );
}

#[test]
fn a_program_that_traces_itself_is_told_so_by_the_kernel_and_by_us() {
    let recording = Recording::of(&victim_command("self_trace"));
    assert_eq!(recording.truth().last["traceme"], "EPERM");
    let said = recording.run.errors().to_lowercase();
    assert!(
        said.contains("traced") && said.contains("refused"),
        "record did not say so: {said}"
    );
    recording.assert_exact();
}

#[test]
fn a_child_that_records_is_refused_in_words() {
    // maptrail inside maptrail: the inner one cannot trace, and must say why, not hang.
    let dir = TempDir::new().expect("a temporary directory");
    let inner = recorded(&[], &dir.path().join("inner"), &command("true", [""; 0]));
    let recording = Recording::of(&inner);
    assert_ne!(recording.run.code(), 0);
    assert!(
        recording.run.errors().to_lowercase().contains("trac"),
        "{}",
        recording.run.errors()
    );
}

#[test]
fn the_log_is_private_and_needs_no_terminal() {
    let recording = Recording::of(&command("true", [""; 0]));
    let mode = std::fs::metadata(&recording.log)
        .expect("the log")
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    assert_eq!(
        recording.run.text(),
        "",
        "record prints nothing of its own on standard output"
    );
}

#[test]
fn options_after_the_command_belong_to_the_command() {
    let recording = Recording::of(&command("echo", ["--json", "-o", "x", "--", "--for", "1s"]));
    assert_eq!(recording.run.text(), "--json -o x -- --for 1s\n");
}
