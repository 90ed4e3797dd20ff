//! Attaching never harms the target: not at attach, not at detach, not when the recorder is killed.
//!
//! The victims check themselves and say `ok` at their end, or what went wrong. The tests are short by
//! default; with `MAPTRAIL_LONG=1` they are long, and print figures:
//! `MAPTRAIL_LONG=1 ./test --release --test e2e harmless -- --nocapture --test-threads 1`

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::unistd::Pid;
use tempfile::TempDir;

use crate::common::{finish, maptrail, victim_command};

mod kills;
mod outages;
mod pauses;
mod programs;
mod rounds;

/// The checking victim with all its work.
const BUSY: &str = "unharmed 0 none shielded";

/// Kinds of its work whose calls return EINTR, or come back short, when the tracer is killed while their
/// thread stands right before such a call: the kernel then lets it into the call with a mark that says that
/// a signal has come (README, Limits).
const BROKEN_OFF_BY_A_KILL: &str = "epoll,aio,semaphore,sigtimedwait,timer,recv,accept,pipe,socket";

/// The checking victim as an ordinary program, with SIGCHLD open to all threads. In a traced process it is
/// not dropped although it is ignored, and may wake any thread while not all are taken up: the same kinds
/// are left out, and those that wait for signals.
const BUSY_WITH_SIGCHLD: &str =
    "unharmed 0 epoll,aio,semaphore,recv,accept,pipe,socket,sigtimedwait,timer";

/// As often as the long mode asks for, or as the short one can afford.
fn rounds(long: usize, short: usize) -> usize {
    if std::env::var_os("MAPTRAIL_LONG").is_some_and(|v| v == "1") {
        long
    } else {
        short
    }
}

/// After this a line that does not come is given up. A guard, not a measurement.
const SILENT: Duration = Duration::from_secs(120);

/// The lines that a process prints, read by a thread of their own so that no pipe ever fills.
struct Lines(Receiver<String>);

impl Lines {
    fn of(from: impl Read + Send + 'static) -> Lines {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                let line = line.expect("a pipe can be read");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Lines(receiver)
    }

    /// Reads up to a line that contains `word`. If none comes: all that was said instead.
    fn up_to(&self, word: &str) -> Result<String, String> {
        let mut said = String::new();
        while let Ok(line) = self.0.recv_timeout(SILENT) {
            if line.contains(word) {
                return Ok(line);
            }
            said = said + &line + "\n";
        }
        Err(said)
    }

    /// What is left, up to the end of the pipe.
    fn rest(&self) -> String {
        let lines: Vec<String> = self.0.iter().collect();
        lines.join("\n")
    }
}

/// A running victim that says `working` when it is, and ends when its standard input does.
struct Victim {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines,
}

impl Victim {
    /// Starts a victim, with its arguments, and waits until it works.
    fn start(line: &str) -> Victim {
        let mut child = victim_command(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the victim starts");
        let lines = Lines::of(child.stdout.take().expect("a pipe"));
        let stdin = child.stdin.take();
        lines
            .up_to("working")
            .unwrap_or_else(|said| panic!("{line}: {said}"));
        Victim {
            child,
            stdin,
            lines,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends a line and returns the answer.
    fn ask(&mut self, line: &str) -> String {
        let stdin = self.stdin.as_mut().expect("it has not been ended");
        writeln!(stdin, "{line}").expect("the victim reads");
        self.lines.0.recv_timeout(SILENT).expect("an answer")
    }

    /// Panics with the victim's own words if it has ended.
    fn assert_alive(&mut self, after: &str) {
        if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
            panic!("{after}: {status:?}: {}", self.lines.rest());
        }
    }

    /// Ends it, and returns what it says of itself: all was right.
    fn assert_unharmed(mut self) -> String {
        drop(self.stdin.take());
        let said = self.lines.up_to("ok");
        let status = finish(&mut self.child, "a victim whose input has ended");
        let said = said.unwrap_or_else(|said| panic!("{status:?}: {said}"));
        assert!(status.success(), "{status:?}: {said}");
        said
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // After a failed test it may still be there.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A running `maptrail attach`.
struct Attached {
    child: Child,
    lines: Lines,
    _dir: TempDir,
}

impl Attached {
    /// Attaches for a while, and is not kept by looking for names; no limit of slowdown ends the window before.
    fn start(target: Pid, window: &str) -> Attached {
        let dir = TempDir::new().expect("a temporary directory");
        let mut child = maptrail()
            .args(["attach", &target.to_string(), "--for", window])
            .args(["--max-slowdown", "0", "--symbols", "none", "-o"])
            .arg(dir.path().join("log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("maptrail starts");
        let lines = Lines::of(child.stderr.take().expect("a pipe"));
        Attached {
            child,
            lines,
            _dir: dir,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Waits until the window is open, or returns what was said instead.
    fn recording(&self) -> Result<String, String> {
        self.lines.up_to("recording")
    }

    /// Waits for the end of the window, which must come in order, or returns what was said instead.
    fn closed(mut self) -> Result<(), String> {
        let summary = self.lines.up_to("memory calls in")?;
        let status = finish(&mut self.child, "attach");
        match status.success() {
            true => Ok(()),
            false => Err(format!("{status:?}: {summary}")),
        }
    }
}

/// A whole window. If it fails, what the victim has to say comes first: it may have ended.
fn attach(victim: &mut Victim, window: &str) {
    let attached = Attached::start(victim.pid(), window);
    let opened = attached.recording();
    if let Err(said) = opened.and_then(|_| attached.closed()) {
        thread::sleep(Duration::from_millis(200));
        victim.assert_alive(&said);
        panic!("attach: {said}");
    }
}

/// What `/proc` says of one thread.
struct Status {
    tid: i32,
    text: String,
}

impl Status {
    fn field(&self, name: &str) -> &str {
        let value = self.text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then_some(value.trim())
        });
        value.unwrap_or_else(|| panic!("no {name} of thread {}:\n{}", self.tid, self.text))
    }
}

/// The threads of a process that are there now, by tid.
fn threads(of: Pid) -> Vec<Status> {
    let tasks = fs::read_dir(format!("/proc/{of}/task"));
    let mut all: Vec<Status> = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| {
            // A thread may end while it is looked at.
            Some(Status {
                tid: task.file_name().to_str()?.parse().ok()?,
                text: fs::read_to_string(task.path().join("status")).ok()?,
            })
        })
        .collect();
    all.sort_by_key(|thread| thread.tid);
    all
}
