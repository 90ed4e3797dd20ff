//! Windows on running processes: `maptrail attach`, and what it left of its target.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{finish, maptrail, until_or};

/// `maptrail attach PID` for `time`, with its log at `log`, and however slow that makes the target.
pub fn attach(pid: u32, log: &Path, time: &str) -> Command {
    let mut attach = maptrail();
    attach
        .args(["attach", &pid.to_string(), "--max-slowdown", "0", "--for"])
        .arg(time)
        .arg("-o")
        .arg(log);
    attach
}

/// The field of each thread's `status`, by thread id.
fn of_threads(pid: u32, field: &str) -> BTreeMap<String, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let value = status.lines().find_map(|l| l.strip_prefix(field))?;
            let tid = task.file_name().to_string_lossy().into_owned();
            Some((tid, value.trim().to_owned()))
        })
        .collect()
}

/// The process that traces a thread of this one.
pub fn tracer_of(pid: u32) -> Option<Pid> {
    of_threads(pid, "TracerPid:")
        .values()
        .filter_map(|tracer| tracer.parse().ok())
        .find(|&tracer: &i32| tracer != 0)
        .map(Pid::from_raw)
}

/// The processes that this one started and that are still there.
pub fn children_of(pid: u32) -> Vec<u32> {
    let ours = format!("PPid:\t{pid}\n");
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let mut children: Vec<u32> = all
        .filter(|process| {
            let status = fs::read_to_string(process.path().join("status"));
            status.is_ok_and(|status| status.contains(&ours))
        })
        .filter_map(|process| process.file_name().to_string_lossy().parse().ok())
        .collect();
    children.sort_unstable();
    children
}

/// Whether no thread is traced and none is stopped.
fn is_free(pid: u32) -> bool {
    let states = of_threads(pid, "State:");
    tracer_of(pid).is_none()
        && !states.is_empty()
        && !states.values().any(|s| s.starts_with(['T', 't']))
}

/// Whether the process has ended, seen or unseen by its parent.
fn has_ended(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // The first thread may leave before the others, and is then a zombie in a process that lives.
    status.is_empty() || (status.contains("State:\tZ") && status.contains("Threads:\t1\n"))
}

fn shown(pid: u32) -> String {
    format!(
        "process {pid}: states {:?}, tracers {:?}",
        of_threads(pid, "State:"),
        of_threads(pid, "TracerPid:")
    )
}

/// Asserts that the process lives, that nobody traces it, and that none of its threads is stopped.
pub fn assert_free(pid: u32, after: &str) {
    assert!(!has_ended(pid), "it ended after {after}");
    assert!(is_free(pid), "not free after {after}: {}", shown(pid));
}

/// Waits until that is so, or until it has ended.
pub fn until_free(pid: u32) {
    until_or(
        || (is_free(pid) || has_ended(pid)).then_some(()),
        || format!("it is set free; {}", shown(pid)),
    );
}

/// Waits until as many as `enough` of its threads have run again, or all; or until it has ended.
pub fn until_it_runs_on(pid: u32, enough: usize) {
    let switches = || -> BTreeMap<String, (String, String)> {
        let mut nonvoluntary = of_threads(pid, "nonvoluntary_ctxt_switches:");
        of_threads(pid, "voluntary_ctxt_switches:")
            .into_iter()
            .map(|(tid, n)| {
                let more = nonvoluntary.remove(&tid).unwrap_or_default();
                (tid, (n, more))
            })
            .collect()
    };
    let before = switches();
    let moved = || {
        let now = switches();
        let ran = before.iter().filter(|(tid, n)| now.get(*tid) != Some(*n));
        ran.count()
    };
    until_or(
        || (moved() >= enough.min(before.len()) || has_ended(pid)).then_some(()),
        || format!("it runs on; {}", shown(pid)),
    );
}

/// A program that was started, with its output in a file. It is killed when this is dropped.
pub struct Started {
    /// The process.
    pub child: Child,
    output: PathBuf,
}

impl Started {
    /// Starts it with its standard output and error in the file `output`, and a pipe on standard input.
    pub fn of(command: &mut Command, output: PathBuf) -> Started {
        let file = File::create(&output).expect("a file");
        let child = command
            .stdin(Stdio::piped())
            .stdout(file.try_clone().expect("a descriptor"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Started { child, output }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said up to now.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).expect("its output")).into_owned()
    }

    /// Waits until it has said a line with `word`; panics if it ends before. Gives all it said.
    pub fn until_it_says(&mut self, word: &str) -> String {
        let Started { child, output } = self;
        let read =
            || String::from_utf8_lossy(&fs::read(&*output).expect("its output")).into_owned();
        until_or(
            || {
                let ended = child.try_wait().expect("a child can be waited for");
                let said = read();
                if said.contains(word) && said.ends_with('\n') {
                    return Some(said);
                }
                assert!(ended.is_none(), "it ended ({ended:?}) and said:\n{said}");
                None
            },
            || format!("the word {word:?} in:\n{}", read()),
        )
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("a signal can be sent");
    }

    /// Lets its standard input end, and waits for its own end.
    pub fn end(&mut self) -> (ExitStatus, String) {
        drop(self.child.stdin.take());
        let status = finish(&mut self.child, "a program that was asked to end");
        (status, self.said())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
