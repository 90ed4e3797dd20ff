//! Real programs at work, stopped at random instants and at their memory calls, with libunwind as the
//! first judge of each stack and gdb as the second.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use maptrail_tracelog::record::StackNode;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::gdb;
use super::libunwind::Libunwind;
use super::processor;
use super::programs::{build, long, program};
use super::servers::{Chromium, Postgres};
use super::stops::Stop;
use super::tally::{Seen, Tally};
use super::target::{Target, registers};

/// mmap, mprotect, munmap, brk, mremap, madvise.
const MEMORY_CALLS: [u64; 6] = [9, 10, 11, 12, 25, 28];

/// The most that a thread is stepped to see where it returns to.
const STEPS: u32 = 3000;
/// Steps within which libgcc delivers an exception once it has begun to overwrite frames.
const DELIVERY: u32 = 400;

/// Programs at work, killed when dropped.
struct Load(Vec<Child>);

impl Load {
    fn start(commands: &mut [Command]) -> Load {
        let start = |command: &mut Command| {
            let command = command.stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(Stdio::null()).process_group(0).spawn()
        };
        Load(commands.iter_mut().map(|c| start(c).unwrap()).collect())
    }

    fn pids(&self) -> Vec<Pid> {
        let pid = |child: &Child| Pid::from_raw(child.id().cast_signed());
        self.0.iter().map(pid).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (child, pid) in self.pids().into_iter().enumerate() {
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = self.0[child].wait();
        }
    }
}

/// One process under judgement.
struct Judged {
    target: Target,
    libunwind: Libunwind,
    /// Where threads were last seen: those that have not moved since are not counted again.
    last: HashMap<Pid, (u64, u64)>,
}

impl Judged {
    fn new(pid: Pid) -> Judged {
        Judged {
            target: Target::new(pid),
            libunwind: Libunwind::new(),
            last: HashMap::new(),
        }
    }

    fn see(&mut self, tid: Pid, interrupted: bool) -> Option<Seen> {
        let regs = registers(tid)?;
        if interrupted && self.last.insert(tid, (regs.rip, regs.rsp)) == Some((regs.rip, regs.rsp))
        {
            return None;
        }
        let (ours, end) = self.target.stack(&regs, interrupted);
        let (libunwind, ended) = self.libunwind.stack(tid);
        let libunwind = libunwind
            .iter()
            .map(|&pc| self.target.canonical(pc))
            .collect();
        let guessed = self.target.frames();
        let guessed = guessed.iter().map(|f| f.flags & StackNode::GUESSED != 0);
        let jit = ours.iter().position(|&pc| self.target.is_jit(pc));
        Some(Seen {
            guessed: guessed.collect(),
            compared: jit.map_or(ours.len(), |jit| jit + 1),
            ours,
            end,
            libunwind,
            ended,
        })
    }

    fn look(&mut self) {
        if self.target.look() {
            self.libunwind = Libunwind::new();
        }
    }
}

/// How much to do.
struct Plan {
    name: &'static str,
    stops: usize,
    calls: usize,
    /// How often gdb may be asked.
    questions: usize,
    /// What the program was stripped of.
    symbols: Option<PathBuf>,
}

impl Plan {
    fn new(name: &'static str) -> Plan {
        let (stops, calls, questions) = if long() {
            (3000, 3000, 300)
        } else {
            (60, 100, 6)
        };
        Plan {
            name,
            stops,
            calls,
            questions,
            symbols: None,
        }
    }

    fn run(&self, pids: impl Fn() -> Vec<Pid>) {
        let mut tally = Tally::default();
        let mut judged: HashMap<Pid, Judged> = HashMap::new();
        let mut questions = self.questions;
        for round in 0..self.stops {
            sleep(Duration::from_micros(2000 + 777 * (round as u64 % 11)));
            let pids = pids();
            assert!(!pids.is_empty(), "{} has ended", self.name);
            let pid = pids[round % pids.len()];
            let mut stop = Stop::all(pid);
            let one = judged.entry(pid).or_insert_with(|| Judged::new(pid));
            one.look();
            let mut seen: Vec<(Pid, Seen)> = stop
                .threads()
                .into_iter()
                .filter_map(|tid| Some((tid, one.see(tid, true)?)))
                .collect();
            // Asking moves a thread on: nobody else can be asked about it then.
            let mut moved = Vec::new();
            seen.retain(|(tid, seen)| {
                let is_libgcc = |pc: &u64| one.target.place(*pc).starts_with("libgcc_s");
                if seen.agrees() || !seen.ours.iter().take(3).any(is_libgcc) {
                    return true;
                }
                let owed = stop.take_owed(*tid);
                let answer = processor::ask(&mut one.target, *tid, owed, usize::MAX, DELIVERY);
                tally.thrown += u64::from(answer.throws);
                moved.push(*tid);
                !answer.throws
            });
            for (_, seen) in &seen {
                tally.count(&one.target, seen);
                if tally.is_open(&one.target, seen) {
                    tally.hear_root(&mut one.target, seen);
                }
            }
            seen.retain(|(tid, _)| !moved.contains(tid));
            let new = |tally: &Tally, target: &Target, seen: &Seen| {
                tally.is_open(target, seen) && !tally.was_asked(target, seen)
            };
            if questions > 0 && seen.iter().any(|(_, s)| new(&tally, &one.target, s)) {
                questions -= 1;
                let stacks = stop.hand_over(|| gdb::stacks(pid, self.symbols.as_deref()));
                for (tid, seen) in &seen {
                    if let Some(gdb) = stacks.get(tid)
                        && new(&tally, &one.target, seen)
                    {
                        let gdb: Vec<u64> =
                            gdb.iter().map(|&pc| one.target.canonical(pc)).collect();
                        tally.hear_gdb(&one.target, seen, &gdb);
                    }
                }
                continue;
            }
            // The processor is asked where gdb was of no help, and now and then about any stack.
            let mut random = round % (5 * seen.len()).max(1);
            for (tid, seen) in &seen {
                let open = tally.is_open(&one.target, seen);
                if open || random == 0 {
                    let owed = stop.take_owed(*tid);
                    let enough = if open { seen.same().max(1) + 1 } else { 2 };
                    let answer = processor::ask(&mut one.target, *tid, owed, enough, STEPS);
                    tally.hear_processor(&one.target, seen, &answer);
                }
                random = random.wrapping_sub(1);
            }
        }
        let bursts = 4;
        for round in 0..bursts {
            let pids = pids();
            let pid = pids[round % pids.len()];
            let Some(one) = judged.get_mut(&pid) else {
                continue;
            };
            let stop = Stop::all(pid);
            let wanted = |number| MEMORY_CALLS.contains(&number);
            stop.at_calls(self.calls / bursts, Duration::from_secs(1), wanted, |tid| {
                one.look();
                let Some(seen) = one.see(tid, false) else {
                    return false;
                };
                tally.count(&one.target, &seen);
                let open = tally.is_open(&one.target, &seen);
                if open {
                    let enough = seen.same().max(1) + 1;
                    let answer = processor::ask(&mut one.target, tid, None, enough, STEPS);
                    tally.hear_processor(&one.target, &seen, &answer);
                }
                open
            });
        }
        println!(
            "| program | stacks | frames | libunwind agrees | somebody agrees | to the root | with JIT frames |"
        );
        assert!(tally.judge(self.name), "{}: see above", self.name);
    }
}

/// The programs need the machine for themselves.
static ALONE: Mutex<()> = Mutex::new(());

fn judge(name: &'static str, commands: &mut [Command]) {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let load = Load::start(commands);
    sleep(Duration::from_millis(700));
    Plan::new(name).run(|| load.pids());
}

fn maps(name: &'static str, compiler: &str, what: &str, flags: &[&str]) {
    let path = build(
        compiler,
        "maps.c",
        &format!("maps-{what}-{compiler}"),
        flags,
    );
    judge(name, &mut [command(&path, &[what])]);
}

fn command(program: impl AsRef<Path>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program.as_ref());
    command.args(arguments);
    command
}

#[test]
fn nested() {
    maps("C", "gcc", "nested", &["-O2"]);
}

#[test]
fn realigned() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        eprintln!("SKIPPED: this processor has no AVX2");
        return;
    }
    maps(
        "C, AVX, realigned",
        "gcc",
        "aligned",
        &["-O3", "-mavx2", "-mtune=haswell"],
    );
}

#[test]
fn signals() {
    maps("C, in signal handlers", "gcc", "signal", &["-O2"]);
}

#[test]
fn coroutines() {
    maps("C, coroutines", "gcc", "coroutines", &["-O2"]);
}

#[test]
fn musl() {
    maps(
        "C, musl, static",
        "musl-gcc",
        "aligned",
        &["-O2", "-static"],
    );
}

#[test]
fn musl_signals() {
    maps(
        "C, musl, signals",
        "musl-gcc",
        "signal",
        &["-O2", "-static"],
    );
}

#[test]
fn exceptions() {
    let path = build("g++", "throws.cc", "throws", &["-O2"]);
    judge("C++ exceptions", &mut [command(path, &["-1"])]);
}

#[test]
fn python() {
    let path = program("work.py");
    let path = path.to_str().unwrap();
    judge(
        "python3, numpy",
        &mut [command("/usr/bin/python3", &[path])],
    );
}

#[test]
fn node() {
    let path = program("work.js");
    judge("node", &mut [command("node", &[path.to_str().unwrap()])]);
}

#[test]
fn java() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut javac = command("javac", &["-d", out.to_str().unwrap()]);
    assert!(javac.arg(program("Work.java")).status().unwrap().success());
    let path = out.to_str().unwrap();
    judge(
        "java",
        &mut [command("java", &["-Xmx200m", "-cp", path, "Work"])],
    );
}

#[test]
fn go() {
    let path = build_go("go", &[]);
    judge("go", &mut [command(path, &[])]);
}

#[test]
fn go_stripped() {
    let whole = build_go("go", &[]);
    let path = build_go("go-stripped", &["-ldflags=-s -w"]);
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let load = Load::start(&mut [command(path, &[])]);
    sleep(Duration::from_millis(700));
    let mut plan = Plan::new("go, stripped");
    plan.symbols = Some(whole);
    plan.run(|| load.pids());
}

fn build_go(name: &str, flags: &[&str]) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut go = command("go", &["build", "-o", out.to_str().unwrap()]);
    go.env("GOFLAGS", "-buildvcs=false")
        .env("GO111MODULE", "off");
    let status = go.args(flags).arg(program("work.go")).status();
    assert!(status.expect("go is needed for this test").success());
    out
}

#[test]
fn rust() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("work-rs");
    let mut rustc = command("rustc", &["-O", "--edition", "2024", "-o"]);
    let status = rustc.arg(&out).arg(program("work.rs")).status().unwrap();
    assert!(status.success());
    judge("rust", &mut [command(out, &[])]);
}

#[test]
fn openssl() {
    let speed = |arguments: &[&str]| {
        let mut command = command("openssl", &["speed", "-seconds", "1"]);
        command.args(arguments);
        command
    };
    judge(
        "openssl speed",
        &mut [
            speed(&[
                "-bytes",
                "8192",
                "sha1",
                "sha256",
                "sha512",
                "aes-256-cbc",
                "ghash",
                "rsa2048",
                "ecdsap256",
                "ecdhx25519",
                "ed25519",
                "dsa2048",
                "ffdh2048",
                "md5",
                "camellia-256-cbc",
            ]),
            speed(&["-evp", "chacha20-poly1305"]),
            speed(&["-evp", "aes-256-gcm"]),
        ],
    );
}

#[test]
fn gcc() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("large.c");
    let mut source = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for i in 0..3000 {
        source.push_str(&format!(
            "int f{i}(int *p, int n) {{ int s = {i}; for (int i = 0; i < n; i++) {{ s += p[i] * (s ^ {i}); \
             if (s % 7 == i % 5) s -= f{}(p, n / 2); switch (s & 7) {{ case 1: s *= 3; break; case 2: s += strlen((char *)p); \
             break; case 5: s ^= n; }} }} return s; }}\n",
            i.max(1) - 1
        ));
    }
    fs::write(&out, source).unwrap();
    let cc1 = Command::new("gcc")
        .arg("-print-prog-name=cc1")
        .output()
        .unwrap();
    let cc1 = String::from_utf8(cc1.stdout).unwrap();
    let arguments = ["-quiet", "-O3", out.to_str().unwrap(), "-o", "/dev/null"];
    judge("gcc", &mut [command(cc1.trim(), &arguments)]);
}

#[test]
fn postgres() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let server = Postgres::start();
    Plan::new("PostgreSQL").run(|| server.backends());
}

/// Too large for every machine that runs the tests: a part of the long form, or of any on a machine that has it.
#[test]
fn chromium() {
    if !Path::new(Chromium::PROGRAM).exists() {
        assert!(!long(), "{} is not installed", Chromium::PROGRAM);
        eprintln!("SKIPPED: {} is not installed", Chromium::PROGRAM);
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let browser = Chromium::start();
    Plan::new("Chromium").run(|| browser.processes());
}
