//! Servers under load while windows open and close on them: no request fails, their logs say nothing, they
//! run on, and what was recorded is exact.
//!
//! Each test prints what it saw; with MAPTRAIL_LONG=1 it opens 100 windows.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::attach::{Started, assert_free, attach, children_of, until_it_runs_on};
use crate::common::{
    Run, assert_whole_and_no_drift, command, have_or_skip, is_root, json, number, skip, testdata,
    until, victim,
};
use crate::programs::python_with_numpy;

use super::rounds;

/// The C library is told to map what is larger than this by itself, so that memory calls come and go with
/// the load.
const MMAP_THRESHOLD: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "65536");

fn script(name: &str) -> PathBuf {
    testdata().join("programs").join(name)
}

/// What all windows on a program saw together.
#[derive(Debug, Default)]
struct Seen {
    windows: u32,
    /// Windows whose last checkpoint was compared.
    verified: u32,
    events: u64,
    stops: u64,
    stopped_ns: u64,
    untraced_bytes: u64,
    kernel_bytes: u64,
}

/// Opens and closes windows on what `target` gives, and asserts of each that it closed in order, that the
/// target is free and runs on, and that the log is exact; and that `quiet` says nothing meanwhile.
fn watch(what: &str, target: impl Fn() -> u32, quiet: &Started) -> Seen {
    let dir = TempDir::new().expect("a temporary directory");
    let before = quiet.said();
    let mut seen = Seen::default();
    for window in 0..rounds(100, 4) {
        let pid = target();
        let log = dir.path().join(window.to_string());
        let run = Run::of(&mut attach(pid, &log, "300ms"));
        let shown = format!("window {window} on {what}: {}", run.errors());
        assert_eq!(run.code(), 0, "{shown}");
        assert!(run.errors().contains("memory calls in"), "{shown}");
        until_it_runs_on(pid, 1);
        assert_free(pid, &shown);
        seen.add(&log, assert_whole_and_no_drift(&log, &shown));
        fs::remove_file(&log).expect("the log can be removed");
    }
    assert_eq!(quiet.said(), before, "{what} had something to say");
    assert!(seen.stops > 0, "{what} was not followed: {seen:?}");
    assert!(seen.verified > 0, "{what} was never verified: {seen:?}");
    eprintln!("{what}: {seen:?}");
    seen
}

impl Seen {
    fn add(&mut self, log: &Path, checkpoints: u64) {
        let info = json(log, &["info"]);
        let verify = json(log, &["verify"]);
        self.windows += 1;
        self.verified += u32::from(checkpoints > 0);
        self.events += number(&info["events"]);
        self.stops += number(&info["stops"]);
        self.stopped_ns += number(&info["stopped_ns"]);
        self.untraced_bytes += number(&verify["untraced_bytes"]);
        self.kernel_bytes += number(&verify["kernel_bytes"]);
    }
}

/// Lets a program that counts its right answers end, and asserts that none was wrong.
fn assert_all_right(what: &str, load: &mut Started) {
    let (status, said) = load.end();
    assert!(status.success(), "{what}: {said}");
    let count = said.lines().last().and_then(|l| l.parse::<u64>().ok());
    assert!(count.is_some_and(|n| n > 0), "{what}: {said}");
    eprintln!("{what}: {} right answers, none wrong", count.unwrap_or(0));
}

/// Ends a server by `signal` and asserts that it ends as it does by itself.
fn assert_ends(what: &str, server: &mut Started, signal: Signal, shell_code: i32) {
    use std::os::unix::process::ExitStatusExt;
    server.signal(signal);
    let (status, said) = server.end();
    let code = status.code().or(status.signal().map(|s| 128 + s));
    assert_eq!(code, Some(shell_code), "{what}: {said}");
}

/// Windows on an HTTP server that says its port, while all it answers is checked.
fn watch_http(what: &str, server: &mut Command, shell_code: i32) {
    let dir = TempDir::new().expect("a temporary directory");
    server.env(MMAP_THRESHOLD.0, MMAP_THRESHOLD.1);
    let mut server = Started::of(server, dir.path().join("server"));
    let port = server.until_it_says("\n");
    let mut ask = command("python3", ["-u"]);
    ask.arg(script("ask.py")).args(["http", port.trim()]);
    let mut load = Started::of(&mut ask, dir.path().join("load"));
    load.until_it_says("ready");
    let seen = watch(what, || server.pid(), &server);
    assert!(seen.events > 0, "{what}: no memory calls");
    assert_all_right(what, &mut load);
    assert_ends(what, &mut server, Signal::SIGTERM, shell_code);
}

#[test]
fn node_as_an_http_server() {
    if have_or_skip("node") && have_or_skip("python3") {
        watch_http("node", command("node", [""; 0]).arg(script("serve.js")), 0);
    }
}

#[test]
fn java_as_an_http_server() {
    if have_or_skip("javac") && have_or_skip("python3") {
        // Without this option the server waits for the client's acknowledgement, 40 ms a request.
        let mut java = command("java", ["-Dsun.net.httpserver.nodelay=true", "-Xmx256m"]);
        watch_http("java", java.arg(script("Serve.java")), 143);
    }
}

#[test]
fn python3_with_numpy_threads_and_pipes() {
    let Some(python) = python_with_numpy() else {
        return skip("python3 with numpy is not installed; ./test says how");
    };
    let dir = TempDir::new().expect("a temporary directory");
    let mut work = command(python, [script("numpy_checked.py")]);
    let mut work = Started::of(&mut work, dir.path().join("work"));
    work.until_it_says("ready");
    let seen = watch("python3", || work.pid(), &work);
    assert!(seen.events > 0, "python3: no memory calls");
    assert_all_right("python3", &mut work);
}

#[test]
fn redis_under_its_benchmark_and_a_client_that_checks() {
    if !(have_or_skip("redis-server") && have_or_skip("redis-benchmark") && have_or_skip("python3"))
    {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory");
    let socket = dir.path().join("socket");
    let mut server = command(
        "redis-server",
        ["--port", "0", "--save", "", "--unixsocket"],
    );
    // Its allocator is told to give back at once what is free.
    server.env(
        "MALLOC_CONF",
        "dirty_decay_ms:0,muzzy_decay_ms:0,retain:false",
    );
    let mut server = Started::of(server.arg(&socket), dir.path().join("server"));
    server.until_it_says("ready to accept");
    let mut ask = command("python3", [script("ask.py")]);
    let mut load = Started::of(ask.arg("redis").arg(&socket), dir.path().join("load"));
    load.until_it_says("ready");
    let mut benchmark = command(
        "redis-benchmark",
        ["-q", "-l", "-P", "16", "-c", "20", "-d", "5000"],
    );
    benchmark
        .args(["-t", "set,get,incr,lpush,lpop,mset", "-s"])
        .arg(&socket);
    let mut benchmark = Started::of(&mut benchmark, dir.path().join("benchmark"));
    let seen = watch("redis", || server.pid(), &server);
    assert!(seen.events > 0, "redis: no memory calls");
    let ended = benchmark
        .child
        .try_wait()
        .expect("a child can be waited for");
    assert!(
        ended.is_none(),
        "redis-benchmark gave up: {}",
        benchmark.said()
    );
    let said = benchmark.said().to_lowercase();
    assert!(!said.contains("error"), "redis-benchmark: {said}");
    assert_all_right("redis", &mut load);
    drop(benchmark);
    assert_ends("redis", &mut server, Signal::SIGTERM, 0);
}

/// A PostgreSQL of its own, with the tables of pgbench.
struct Postgres {
    server: Started,
    bin: PathBuf,
    dir: TempDir,
}

/// The user that PostgreSQL runs as where the tests run as root, which it refuses: nobody.
const NOBODY: u32 = 65534;

/// Where PostgreSQL's programs are: Debian keeps those of the server out of PATH.
fn postgres_programs() -> Option<PathBuf> {
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    debian
        .flatten()
        .map(|version| version.path().join("bin"))
        .chain(std::env::split_paths(&std::env::var_os("PATH")?))
        .find(|bin| {
            ["initdb", "postgres", "pgbench"]
                .iter()
                .all(|p| bin.join(p).is_file())
        })
}

impl Postgres {
    fn start() -> Option<Postgres> {
        let Some(bin) = postgres_programs() else {
            skip("PostgreSQL with pgbench is not installed; ./test says how");
            return None;
        };
        let dir = TempDir::new().expect("a temporary directory");
        let as_user = |program: &str| {
            if !is_root() {
                return command(bin.join(program), [""; 0]);
            }
            let user = format!("user={NOBODY}");
            let mut launch = command(victim("launch_as"), [user.as_str(), "--"]);
            launch.arg(bin.join(program)).current_dir(dir.path());
            launch
        };
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("root gives it away");
        }
        let data = dir.path().join("data");
        let made = Run::of(
            as_user("initdb")
                .args([
                    "--no-sync",
                    "-A",
                    "trust",
                    "-U",
                    "postgres",
                    "--locale=C",
                    "-D",
                ])
                .arg(&data),
        );
        assert!(
            made.status.success(),
            "initdb: {}{}",
            made.text(),
            made.errors()
        );
        let mut server = as_user("postgres");
        server
            .env(MMAP_THRESHOLD.0, MMAP_THRESHOLD.1)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "log_checkpoints=off",
                "-c",
                "fsync=off",
            ])
            .arg("-k")
            .arg(dir.path())
            .arg("-D")
            .arg(&data);
        let mut server = Started::of(&mut server, dir.path().join("server"));
        server.until_it_says("ready to accept connections");
        let postgres = Postgres { server, bin, dir };
        let filled = Run::of(postgres.client("pgbench").args(["-i", "-q"]));
        assert!(filled.status.success(), "{}", filled.errors());
        Some(postgres)
    }

    fn client(&self, program: &str) -> Command {
        let mut client = command(self.bin.join(program), ["-U", "postgres", "-h"]);
        client.arg(self.dir.path()).env("PGDATABASE", "postgres");
        client
    }

    /// pgbench until it is asked to end, with `options`.
    fn bench(&self, options: &[&str]) -> Started {
        let sort = self.dir.path().join("sort.sql");
        let query = "SELECT 1 / (count(*) = 5000)::int FROM \
                     (SELECT md5(g::text) AS m FROM generate_series(1, 5000) g ORDER BY m) sorted;";
        fs::write(&sort, query).expect("a file");
        let mut bench = self.client("pgbench");
        bench.args(["-c", "4", "-T", "100000", "-b", "tpcb-like@4", "-f"]);
        bench.arg(format!("{}@1", sort.display())).args(options);
        Started::of(&mut bench, self.dir.path().join("bench"))
    }

    /// The server processes that serve pgbench at the moment.
    fn backends(&self) -> Vec<u32> {
        let serves = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/cmdline"));
            name.is_ok_and(|name| name.contains("[local]"))
        };
        let all = children_of(self.server.pid()).into_iter();
        all.filter(serves).collect()
    }

    /// Ends pgbench, and asserts that no transaction failed and that the books balance.
    fn assert_all_right(mut self, what: &str, mut bench: Started) {
        // What pgbench sends itself when its time is over.
        bench.signal(Signal::SIGALRM);
        let (status, said) = bench.end();
        assert!(status.success(), "{what}: {said}");
        assert!(
            said.contains("number of failed transactions: 0 "),
            "{what}: {said}"
        );
        assert!(!said.contains("error"), "{what}: {said}");
        let count = said.lines().find(|l| l.contains("actually processed"));
        eprintln!("{what}: {}, none failed", count.unwrap_or_default());
        let balance = "SELECT every(sum = (SELECT sum(delta) FROM pgbench_history)) FROM \
                       (SELECT sum(abalance) FROM pgbench_accounts UNION ALL \
                        SELECT sum(bbalance) FROM pgbench_branches UNION ALL \
                        SELECT sum(tbalance) FROM pgbench_tellers) sums";
        let run = Run::of(self.client("psql").args(["-At", "-c", balance]));
        assert_eq!(
            run.text(),
            "t\n",
            "{what}: the books do not balance: {}",
            run.errors()
        );
        assert_ends(what, &mut self.server, Signal::SIGINT, 0);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // They end by themselves when their first process is gone; but not if a test found them stopped.
        for backend in children_of(self.server.pid()) {
            kill(Pid::from_raw(backend.cast_signed()), Signal::SIGKILL).ok();
        }
    }
}

#[test]
fn postgresql_backends_under_pgbench() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let bench = postgres.bench(&[]);
    let backends = until("pgbench is served", || {
        let all = postgres.backends();
        (all.len() == 4).then_some(all)
    });
    let next = std::cell::Cell::new(0);
    let backend = || backends[next.replace(next.get() + 1) % backends.len()];
    let seen = watch("PostgreSQL's backends", backend, &postgres.server);
    assert!(seen.events > 0, "PostgreSQL's backends: no memory calls");
    postgres.assert_all_right("PostgreSQL's backends", bench);
}

#[test]
fn postgresqls_first_process_while_it_forks() {
    let Some(postgres) = Postgres::start() else {
        return;
    };
    let bench = postgres.bench(&["--connect"]);
    until("pgbench is served", || postgres.backends().first().copied());
    watch(
        "PostgreSQL's first process",
        || postgres.server.pid(),
        &postgres.server,
    );
    postgres.assert_all_right("PostgreSQL's first process", bench);
}
