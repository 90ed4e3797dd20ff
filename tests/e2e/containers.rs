//! Attaching as an ordinary user, as root, inside a container's namespaces, and from the host into one: the
//! leak is found by name, and the log is exact.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::attach::{Started, assert_free, attach, children_of};
use crate::common::stage::Stage;
use crate::common::truth::{functions, stacks};
use crate::common::{
    Run, assert_exact, command, have_or_skip, is_root, json, number, skip, until, victim,
};

/// A program that leaks for very long, a page each half millisecond.
const LEAKING: [&str; 4] = ["100000000", "4096", "500", "2"];

/// Asserts that the window closed in order, that the log is exact, and that the leak was found by name.
fn assert_leak_found(attached: &Run, log: &Path) {
    let said = attached.errors();
    assert_eq!(attached.code(), 0, "{said}");
    assert!(said.contains("memory calls in"), "{said}");
    assert_exact(log, &said);
    let leaks = json(log, &["leaks"]);
    let worst = stacks(&leaks).first().expect("a stack");
    assert!(functions(worst).any(|f| f == "leak_raw"), "{leaks:#}");
    assert_eq!(worst["verdict"], "leak", "{leaks:#}");
    assert!(number(&worst["held_bytes"]) > 0, "{leaks:#}");
}

/// Whether `unshare` makes the namespaces of a container here.
fn namespaces_or_skip() -> bool {
    if !have_or_skip("unshare") {
        return false;
    }
    let probe = Run::of(&mut unshared("true"));
    if !probe.status.success() {
        skip(&format!(
            "no namespaces can be made here: {}",
            probe.errors()
        ));
    }
    probe.status.success()
}

/// A shell script in pid, mount and user namespaces of its own, as their root.
fn unshared(script: &str) -> Command {
    let namespaces = [
        "--user",
        "--map-root-user",
        "--pid",
        "--mount",
        "--fork",
        "--kill-child",
    ];
    let mut unshare = command("unshare", namespaces);
    unshare.args(["--mount-proc", "sh", "-c", script]);
    unshare
}

#[test]
fn whoever_runs_the_tests_attaches() {
    let stage = Stage::new();
    let log = stage.path("log");
    let mut leaking = command(&stage.leaking, LEAKING);
    let leaking = Started::of(&mut leaking, stage.path("output"));
    let run = Run::of(&mut attach(leaking.pid(), &log, "1s"));
    assert_leak_found(&run, &log);
    assert_free(leaking.pid(), "a window");
}

#[test]
fn an_ordinary_user_attaches_to_a_process_of_their_own() {
    if !is_root() {
        return skip("privileges can be dropped by root only; the other tests ran without them");
    }
    if !have_or_skip("setpriv") {
        return;
    }
    let stage = Stage::new();
    let as_nobody = |program: &Command| stage.as_nobody(program);
    let leaking = command(&stage.leaking, LEAKING);
    let leaking = Started::of(&mut as_nobody(&leaking), stage.path("output"));
    until("it is the victim that runs", || {
        let name = fs::read_to_string(format!("/proc/{}/comm", leaking.pid())).ok()?;
        (name == "raw_leak\n").then_some(())
    });
    let log = stage.home().join("log");
    let attached = attach(leaking.pid(), &log, "1s");
    let run = Run::of(&mut as_nobody(
        command(&stage.maptrail, [""; 0]).args(attached.get_args()),
    ));
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if ["", "0"].contains(&yama.trim()) {
        assert_leak_found(&run, &log);
    } else {
        assert_eq!(run.code(), 2, "{}", run.errors());
        assert!(run.errors().contains("ptrace_scope"), "{}", run.errors());
    }
    assert_free(leaking.pid(), "a window");
}

#[test]
fn inside_a_container() {
    if !namespaces_or_skip() {
        return;
    }
    let stage = Stage::new();
    let log = stage.path("log");
    let script = "leaking=$1; shift; $leaking & target=$!; \
                  \"$@\" \"$target\"; code=$?; grep -H TracerPid: /proc/$target/status; \
                  kill -9 \"$target\" || code=99; exit $code";
    let mut inside = unshared(script);
    inside.args([
        String::from("sh"),
        format!("{} {}", stage.leaking.display(), LEAKING.join(" ")),
    ]);
    inside.arg(&stage.maptrail);
    inside.args(["attach", "--max-slowdown", "0", "--for", "1s", "-o"]);
    let run = Run::of(inside.arg(&log));
    assert_leak_found(&run, &log);
    assert!(run.text().contains("TracerPid:\t0\n"), "{}", run.text());
}

/// Makes a root directory with nothing but a program, under a path that no other root has, the libraries
/// that it needs, and an empty `/tmp`.
fn root_directory(stage: &Stage, program: &Path) -> PathBuf {
    let root = stage.path("root");
    for dir in ["app", "old", "tmp"] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
    }
    fs::copy(program, root.join("app/leaks_in_a_container")).expect("a copy");
    let needed = Run::of(&mut command("ldd", [program]));
    let text = needed.text();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("a directory")).expect("a directory");
        fs::copy(library, copy).expect("a copy");
    }
    root
}

/// Starts a program in a container with a root directory of its own. Gives what holds the container, and
/// the program's pid as it is seen here.
fn contained(stage: &Stage, program: &Path, args: &[&str]) -> (Started, u32) {
    let root = root_directory(stage, program);
    let script = "mount --bind \"$0\" \"$0\" && cd \"$0\" && pivot_root . old && \
                  exec /app/leaks_in_a_container \"$@\"";
    let mut container = unshared(script);
    let container = Started::of(container.arg(&root).args(args), stage.path("output"));
    let target = until("the victim runs in its container", || {
        children_of(container.pid()).into_iter().find(|child| {
            let name = fs::read_to_string(format!("/proc/{child}/comm"));
            name.is_ok_and(|name| name.starts_with("leaks_in_a"))
        })
    });
    (container, target)
}

#[test]
fn from_the_host_into_a_container() {
    if !namespaces_or_skip() {
        return;
    }
    let stage = Stage::new();
    let (_container, target) = contained(&stage, &stage.leaking, &LEAKING);
    let log = stage.path("log");
    let run = Run::of(&mut attach(target, &log, "1s"));
    assert_leak_found(&run, &log);
    assert_free(target, "a window");
}

#[test]
fn a_perf_map_of_a_container_is_found_by_the_pid_inside_of_it() {
    if !namespaces_or_skip() {
        return;
    }
    let stage = Stage::new();
    let args = ["code_of_a_container", "100000000", "4096", "500"];
    let (_container, target) = contained(&stage, &victim("jit"), &args);
    until("it has written its perf map", || {
        let map = fs::read_to_string(stage.path("root/tmp/perf-1.map")).ok()?;
        map.ends_with("code_of_a_container\n").then_some(())
    });
    let log = stage.path("log");
    let run = Run::of(&mut attach(target, &log, "1s"));
    assert_exact(&log, &run.errors());
    let leaks = json(&log, &["leaks"]);
    let worst = stacks(&leaks).first().expect("a stack");
    assert!(
        functions(worst).any(|f| f == "code_of_a_container"),
        "{leaks:#}"
    );
}
