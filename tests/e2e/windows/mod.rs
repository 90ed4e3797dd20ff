//! Windows on running processes: whom they follow, what opens and closes them, and that the target goes on
//! as it was.
//!
//! The target is the victim `worker`, which does one thing at a time, when it is told to. So a test knows
//! every call that the log must have, and every one that it must not have.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use maptrail_tracelog::reader::{Chunk, LogReader};
use maptrail_tracelog::record::{Header, Record};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::attach::{Started, assert_free};
use crate::common::{
    Run, assert_exact, finish, json, maptrail, number, until, until_or, victim_command,
};

mod beginning;
mod children;
mod chosen;
mod deaths;
mod ends;
mod programs;
mod stops;

const PAGE: u64 = 4096;
/// Pages that `map COUNT` maps at a time.
const PAGES: u64 = 13;

/// A running `worker`.
struct Worker {
    program: Started,
    answers: usize,
}

impl Worker {
    fn start(dir: &Path) -> Worker {
        let program = Started::of(&mut victim_command("worker"), dir.join("worker"));
        let mut worker = Worker {
            program,
            answers: 0,
        };
        worker.answer();
        worker
    }

    fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Gives a command, and does not wait for what comes of it.
    fn tell(&mut self, command: &str) {
        let stdin = self.program.child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{command}").expect("it reads");
    }

    /// The next answer: who gave it, and what.
    fn answer(&mut self) -> (u32, String) {
        let Worker { program, answers } = self;
        let line = until("an answer of the worker", || {
            let ended = program.child.try_wait().expect("a child can be waited for");
            let said = program.said();
            let complete = said.rfind('\n').map_or("", |end| &said[..end]);
            let line = complete.lines().nth(*answers).map(str::to_owned);
            assert!(line.is_some() || ended.is_none(), "{ended:?}: {said}");
            line
        });
        *answers += 1;
        let (tid, answer) = line.split_once(' ').expect("a tid");
        (tid.parse().expect("a number"), answer.to_owned())
    }

    /// Gives a command, asserts that it is answered so, and gives who answered.
    fn does(&mut self, command: &str, answer: &str) -> u32 {
        self.tell(command);
        let (tid, said) = self.answer();
        assert_eq!(said, answer, "to {command:?}");
        tid
    }

    /// Has it map something, or one of its threads.
    fn maps(&mut self, command: &str) {
        self.does(command, "mapped");
    }

    /// Has a thread made, and gives its tid.
    fn thread(&mut self, name: &str) -> u32 {
        self.does(&format!("thread {name}"), "thread")
    }

    /// Has a thread end, and waits until it is gone.
    fn loses(&mut self, name: &str) {
        let tid = self.does(&format!("to {name} leave"), "leaves");
        let task = format!("/proc/{}/task/{tid}", self.pid());
        until("a thread is gone", || {
            (!Path::new(&task).exists()).then_some(())
        });
    }

    /// Asserts that it is as it was before any window: nobody traces it, and it does what it is told.
    fn assert_unharmed(&mut self, after: &str) {
        assert_free(self.pid(), after);
        self.maps("map 1");
    }
}

/// A `worker`, and where the logs of its windows go.
struct Scene {
    worker: Worker,
    dir: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = TempDir::new().expect("a temporary directory");
        Scene {
            worker: Worker::start(dir.path()),
            dir,
        }
    }

    /// `maptrail attach` to the worker, without any limit.
    fn attach(&self, options: &[&str]) -> Command {
        let mut attach = maptrail();
        attach.arg("attach").arg(self.worker.pid().to_string());
        attach.arg("-o").arg(self.log()).args(options);
        attach
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Begins a window with these options, and waits until it is open.
    fn open(&self, options: &[&str]) -> Window {
        let mut attach = self.attach(&[&["--max-slowdown", "0"], options].concat());
        self.begin(&mut attach)
    }

    /// The same, of a whole command.
    fn begin(&self, attach: &mut Command) -> Window {
        let mut front = Started::of(attach, self.dir.path().join("window"));
        front.until_it_says("recording");
        Window {
            front,
            log: self.log(),
        }
    }
}

/// A window that is open.
struct Window {
    front: Started,
    log: PathBuf,
}

impl Window {
    /// Closes it as Ctrl-C does.
    fn close(self) -> Log {
        self.front.signal(Signal::SIGINT);
        self.closed()
    }

    /// Waits for its end, which must come by itself and in order.
    fn closed(mut self) -> Log {
        let status = finish(&mut self.front.child, "attach");
        let said = self.front.said();
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(status.code(), Some(0), "{status:?}: {said}");
        assert!(said.contains("memory calls in"), "{said}");
        Log {
            path: self.log,
            said,
        }
    }

    /// How many calls of a thread have come to the log up to now.
    fn written_of(&self, tid: u32) -> usize {
        let mut events = maptrail();
        events.arg("events").arg(&self.log);
        let run = Run::of(events.args(["--format", "json"]));
        of_thread(&events_in(&run.text()), tid).count()
    }

    /// Has a thread map single pages until some are in the log: it is followed then.
    fn until_follows(&self, worker: &mut Worker, name: &str, tid: u32) {
        until_or(
            || {
                worker.maps(&format!("to {name} map 1 1"));
                (self.written_of(tid) > 0).then_some(())
            },
            || format!("thread {name} is followed: {}", self.front.said()),
        );
    }
}

/// The log of a window that was closed in order.
struct Log {
    path: PathBuf,
    said: String,
}

impl Log {
    fn json(&self, args: &[&str]) -> Value {
        json(&self.path, args)
    }

    /// How the window ended.
    fn end(&self) -> String {
        let info = self.json(&["info"]);
        info["end"].as_str().expect("an end").to_owned()
    }

    /// Nothing was lost, the log is whole, and the model is the kernel's.
    fn assert_exact(&self) {
        assert_exact(&self.path, &self.said);
    }

    fn events(&self) -> Vec<Value> {
        let mut events = maptrail();
        events.arg("events").arg(&self.path);
        let run = Run::of(events.args(["--format", "json"]));
        assert_eq!(run.code(), 0, "{}", run.errors());
        events_in(&run.text())
    }

    /// Who made calls that were recorded.
    fn callers(&self) -> BTreeSet<u64> {
        let events = self.events();
        events.iter().map(|event| number(&event["tid"])).collect()
    }

    /// How often a thread mapped so many pages.
    fn maps_of(&self, tid: u32, pages: u64) -> usize {
        let events = self.events();
        let maps = of_thread(&events, tid).filter(|event| is_map(event, pages));
        maps.count()
    }

    /// Threads that changed the space and were not followed, with the reason.
    fn untraced(&self) -> BTreeSet<(u64, String)> {
        let verify = self.json(&["verify"]);
        let spaces = verify["spaces"].as_array().expect("spaces");
        let threads = spaces.iter().flat_map(|space| {
            let threads = space["untraced_threads"].as_array();
            threads.expect("untraced threads")
        });
        threads
            .map(|thread| {
                let why = thread["why"].as_str().expect("a reason");
                (number(&thread["tid"]), why.to_owned())
            })
            .collect()
    }

    /// Asserts that these threads, for these reasons, and nobody else changed so many bytes unseen.
    fn assert_untraced(&self, threads: &[(u32, &str)], bytes: u64) {
        let expected = (threads.iter()).map(|(tid, why)| (u64::from(*tid), (*why).to_owned()));
        assert_eq!(self.untraced(), expected.collect());
        let verify = self.json(&["verify"]);
        assert_eq!(verify["untraced_bytes"], bytes, "{verify:#}");
    }
}

/// How a log begins, and everything in it but its events.
fn read(log: &Log) -> (Header, Vec<Record>) {
    let file = File::open(&log.path).expect("a log");
    let mut reader = LogReader::open(BufReader::new(file)).expect("a log");
    let (mut chunk, mut records) = (Chunk::default(), Vec::new());
    while reader.next_chunk(&mut chunk).expect("a log") {
        records.append(&mut chunk.records);
    }
    (reader.header().clone(), records)
}

/// The objects in what `events --format json` prints.
fn events_in(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

fn of_thread(events: &[Value], tid: u32) -> impl Iterator<Item = &Value> {
    events.iter().filter(move |event| event["tid"] == tid)
}

fn is_map(event: &Value, pages: u64) -> bool {
    event["call"] == "mmap" && event["args"][1] == pages * PAGE
}

/// The state of each thread of a process, as one letter, by its `status`.
fn states(pid: u32) -> Vec<char> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    tasks
        .flatten()
        .filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let state = status.lines().find_map(|l| l.strip_prefix("State:"))?;
            state.trim().chars().next()
        })
        .collect()
}
