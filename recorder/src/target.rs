//! Looks at a running process before anything is done to it, and says why it cannot be attached to.
//!
//! Everything here reads; nothing touches the process. That the kernel allows to trace it is known
//! only when it is tried: [`crate::refusal`] explains its refusal.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use glob::Pattern;
use maptrail_tracelog::types::{Pid, Tid};
use nix::sys::signal;

use crate::error::Error;
use crate::proc;
pub use crate::refusal::why_refused;
use crate::refusal::{shown, traced_by};
use crate::sys::{pidfd, spawn};

/// Flag of a thread of the kernel's own (`PF_KTHREAD` in linux/sched.h).
const KERNEL_THREAD: u64 = 0x0020_0000;
/// Flag of a thread that ends (`PF_EXITING`, same place).
const EXITING: u64 = 0x4;
/// A process is watched for so long before its last threads are believed to have ended alone.
const LAST_THREADS: Duration = Duration::from_millis(100);
/// What is said of a process that is gone, ...
const ENDED: &str = "it ended meanwhile";
/// ... after so many more looks: for a moment one seems to be whose first thread another one replaces, by
/// its exec, ...
const LOOKS: u32 = 3;
/// ... and which is waited for so long.
const IN_EXEC: Duration = Duration::from_millis(10);
/// Names of threads that an error lists.
const LISTED: usize = 8;

/// A process that may be attached to, as it was when it was looked at.
#[derive(Debug)]
pub struct Target {
    /// Its pid.
    pub pid: Pid,
    /// When it started, in the kernel's own unit: tells it from a later process with its pid.
    pub start_time: u64,
    /// Its name.
    pub name: String,
    /// Its command line.
    pub command: Vec<String>,
    /// `None` where the kernel, or a container's rules, have no such descriptors.
    pidfd: Option<OwnedFd>,
}

impl Target {
    /// Looks at process `pid`.
    ///
    /// # Errors
    /// [`Error::Target`] with cause and remedy if it cannot be attached to, [`Error::NoProc`].
    pub fn look(pid: Pid) -> Result<Target, Error> {
        if !proc::is_ours() {
            return Err(Error::NoProc);
        }
        let mut looked = Target::look_at(pid);
        for _ in 0..LOOKS {
            if !looked.as_ref().is_err_and(|cause| cause == ENDED) {
                break;
            }
            thread::sleep(IN_EXEC);
            looked = Target::look_at(pid);
        }
        looked.map_err(|cause| Error::Target { pid, cause })
    }

    fn look_at(pid: Pid) -> Result<Target, String> {
        Stat::read(Tid(pid.0)).map_err(|error| why_unseen(pid, &error))?;
        if let Some(process) = proc::process_of(Tid(pid.0)).filter(|process| *process != pid) {
            return Err(format!(
                "it is no process, but a thread of process {}; write `maptrail attach {process} --tid \
                 {pid}` to record this thread alone",
                with_name(process)
            ));
        }
        let pidfd = match pidfd::open(pid) {
            Err(error) if is_exhausted(&error) => return Err(why_unseen(pid, &error)),
            answer => answer.ok(),
        };
        // From here on the descriptor says whether it is one process that is looked at.
        let stat = Stat::read(Tid(pid.0)).map_err(|error| why_unseen(pid, &error))?;
        let target = Target {
            pid,
            start_time: stat.start_time,
            name: stat.name,
            command: Vec::new(),
            pidfd,
        };
        if pid.0 == std::process::id() {
            return Err(
                "this is maptrail itself, and nothing can trace itself; name another \
                        process (pgrep NAME finds pids)"
                    .into(),
            );
        }
        if i64::from(pid.0) == i64::from(nix::unistd::getppid().as_raw()) {
            return Err(format!(
                "{} started this maptrail and waits for it; attach to it from another terminal, or \
                 name the pid of the worker that you mean (pgrep NAME finds pids)",
                shown(&target.name)
            ));
        }
        if stat.flags & KERNEL_THREAD != 0 {
            return Err(format!(
                "{} is a thread of the kernel, which has no address space of its own; name a process \
                 that runs a program",
                shown(&target.name)
            ));
        }
        // The first thread may have ended before the others, and then knows nothing of the process.
        let threads = target.threads();
        let Some(&(witness, _)) = threads.first() else {
            let parent = Pid(stat.parent);
            return Err(match stat.state {
                'Z' => format!(
                    "it has ended already: a zombie that its parent {} has not asked for yet",
                    with_name(parent)
                ),
                _ => ENDED.into(),
            });
        };
        if let Some(tracer) = threads.iter().find_map(|(tid, _)| proc::tracer_of(*tid)) {
            return Err(traced_by(tracer));
        }
        // Whoever may not even follow this link may not trace it.
        let link = fs::read_link(format!("/proc/{witness}/exe"));
        if link.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            return Err(why_refused(
                witness,
                &io::Error::from_raw_os_error(libc::EPERM),
            ));
        }
        if is_32_bit(witness) {
            return Err(
                "it is a 32-bit program, and maptrail attaches to 64-bit programs only; \
                        start it with `maptrail record`, which names its code without its callers"
                    .into(),
            );
        }
        let (_, command) = proc::program(witness);
        match target.is_same() {
            true => Ok(Target { command, ..target }),
            false => Err(ENDED.into()),
        }
    }

    /// Whether it still lives and its pid has not been given to another process.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.seems_same() || {
            thread::sleep(IN_EXEC);
            self.seems_same()
        }
    }

    fn seems_same(&self) -> bool {
        let ended = self.pidfd.as_ref().is_some_and(|pidfd| {
            let ready = spawn::poll_readable(&[pidfd], 0);
            ready.is_ok_and(|ready| ready.contains(&true))
        });
        !ended && Stat::read(Tid(self.pid.0)).is_ok_and(|stat| stat.start_time == self.start_time)
    }

    /// Whether it lives on though threads of it have ended: they may have been the first of all, since
    /// those of a process that dies end one by one.
    #[must_use]
    pub fn lives_on(&self) -> bool {
        let begin = Instant::now();
        while self.is_same() && !self.is_dying() {
            if begin.elapsed() >= LAST_THREADS {
                return true;
            }
            thread::sleep(LAST_THREADS / 20);
        }
        false
    }

    /// Whether nothing is left of it but threads that are about to end.
    fn is_dying(&self) -> bool {
        let ends = |tid| {
            let exits = Stat::read(tid).is_ok_and(|stat| stat.flags & EXITING != 0);
            exits || proc::is_killed(tid)
        };
        self.threads().iter().all(|(tid, _)| ends(*tid))
    }

    /// What [`Target::is_same`] asks.
    #[must_use]
    pub fn descriptor(&self) -> Option<RawFd> {
        self.pidfd.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Its threads that can be traced now, with their names: those that have not ended.
    #[must_use]
    pub fn threads(&self) -> Vec<(Tid, String)> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.pid));
        // Collected first, so that two descriptors are never needed at a time.
        let tids: Vec<Tid> = (entries.into_iter().flatten())
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Tid))
            .collect();
        let living = |tid| {
            let stat = Stat::read(tid).ok()?;
            (!matches!(stat.state, 'Z' | 'X' | 'x')).then_some((tid, stat.name))
        };
        tids.into_iter().filter_map(living).collect()
    }
}

/// Which threads to follow.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// These.
    pub tids: Vec<Tid>,
    /// And those with a name like one of these. If both are empty: all.
    pub names: Vec<Pattern>,
}

impl Choice {
    /// All threads.
    #[must_use]
    pub fn all() -> Choice {
        Choice::default()
    }

    /// Whether no thread is left out.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.tids.is_empty() && self.names.is_empty()
    }

    /// Whether a thread is among them.
    #[must_use]
    pub fn takes(&self, tid: Tid, name: &str) -> bool {
        self.takes_all()
            || self.tids.contains(&tid)
            || self.names.iter().any(|pattern| pattern.matches(name))
    }

    /// Makes sure that every thread and every name that was asked for is there.
    ///
    /// # Errors
    /// [`Error::Target`] for the first that is not.
    pub fn check(&self, target: &Target) -> Result<(), Error> {
        let threads = target.threads();
        let missing = (self.tids.iter())
            .filter(|tid| !threads.iter().any(|(t, _)| t == *tid))
            .map(|tid| why_no_thread(*tid, target))
            .chain(
                (self.names.iter())
                    .filter(|pattern| !threads.iter().any(|(_, name)| pattern.matches(name)))
                    .map(|pattern| {
                        format!(
                            "no thread of it has a name like {:?}; there are {}",
                            pattern.as_str(),
                            listed(&threads)
                        )
                    }),
            )
            .next();
        let refused = |cause| Error::Target {
            pid: target.pid,
            cause,
        };
        match missing {
            None => Ok(()),
            Some(_) if !target.lives_on() => Err(refused(ENDED.into())),
            Some(cause) => Err(refused(cause)),
        }
    }
}

fn why_no_thread(tid: Tid, target: &Target) -> String {
    let remedy = format!("`ls /proc/{}/task` lists its threads", target.pid);
    match proc::process_of(tid) {
        Some(process) if process == target.pid => {
            format!("its thread {tid} has ended already; {remedy}")
        }
        Some(process) => format!(
            "thread {tid} is not one of its threads, but one of process {}; {remedy}",
            with_name(process)
        ),
        None => format!("there is no thread {tid}; {remedy}"),
    }
}

/// Some names of threads, each once.
fn listed(threads: &[(Tid, String)]) -> String {
    let mut names: Vec<String> = threads
        .iter()
        .map(|(_, name)| format!("{name:?}"))
        .collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    match more {
        0 => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    }
}

/// A pid with its process's name, where that can be seen (a parent may be in another pid namespace).
fn with_name(pid: Pid) -> String {
    match proc::comm(Tid(pid.0)) {
        name if name.is_empty() => pid.to_string(),
        name => format!("{pid} ({})", shown(&name)),
    }
}

/// Why nothing can be read of a process.
fn why_unseen(pid: Pid, error: &io::Error) -> String {
    if is_exhausted(error) {
        return format!("no file can be opened ({error}); allow more (ulimit -n)");
    }
    let there = i32::try_from(pid.0).map(|raw| signal::kill(nix::unistd::Pid::from_raw(raw), None));
    match (error.kind(), there) {
        (_, Ok(Ok(()) | Err(nix::Error::EPERM))) => format!(
            "it is there, but /proc does not show it ({error}): processes of other users are hidden \
             here (hidepid); run maptrail as root (sudo)"
        ),
        (io::ErrorKind::NotFound, _) | (_, Ok(Err(nix::Error::ESRCH))) => {
            "there is no such process; pgrep NAME finds pids (those of a container are others inside \
             of it than outside)"
                .into()
        }
        _ => format!("/proc/{pid}/stat cannot be read: {error}"),
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether its program file is made for 32 bits; `false` if nobody can tell.
fn is_32_bit(tid: Tid) -> bool {
    let mut start = [0; 5];
    let read =
        File::open(format!("/proc/{tid}/exe")).and_then(|mut exe| exe.read_exact(&mut start));
    read.is_ok() && start == *b"\x7fELF\x01"
}

/// What `/proc/TID/stat` says of a thread (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    parent: u32,
    flags: u64,
    start_time: u64,
}

impl Stat {
    fn read(tid: Tid) -> io::Result<Stat> {
        let text = proc::read_text(&format!("/proc/{tid}/stat"))?;
        Stat::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name in parentheses may hold anything, parentheses too; field 3 follows the last one.
        let (before, after) = text.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3);
        Some(Stat {
            name: name.to_owned(),
            state: field(3)?.chars().next()?,
            parent: field(4)?.parse().ok()?,
            flags: field(9)?.parse().ok()?,
            start_time: field(22)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_cannot_pass_for_other_fields() {
        let text = "7 (a) Z 1 (b) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 4096 1\n";
        let expected = Stat {
            name: "a) Z 1 (b".into(),
            state: 'S',
            parent: 3,
            flags: 4_194_560,
            start_time: 99,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (cut) S 3"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_process_that_ended_is_not_the_same_and_neither_is_its_pids_next_owner() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let target = Target::look(Pid(child.id())).expect("a target");
        let tids: Vec<Tid> = target.threads().into_iter().map(|(tid, _)| tid).collect();
        assert_eq!(tids, [Tid(child.id())]);
        assert!(target.is_same());
        // As it is told apart where there are no descriptors of processes.
        let other = |start_time| Target {
            start_time,
            name: String::new(),
            command: Vec::new(),
            pid: target.pid,
            pidfd: None,
        };
        assert!(other(target.start_time).is_same());
        assert!(!other(target.start_time - 1).is_same());

        child.kill().expect("a signal");
        let ended = || !target.is_same();
        while !ended() {
            std::thread::yield_now();
        }
        assert!(target.threads().is_empty());
        child.wait().expect("an end");
        assert!(ended());
        let refused = Target::look(target.pid).expect_err("it is gone");
        assert!(refused.to_string().contains("no such process"), "{refused}");
    }

    #[test]
    fn names_are_listed_once_and_not_without_end() {
        let threads = |n: u32| -> Vec<_> {
            let name = |i: u32| (Tid(i), format!("worker-{}", i / 2));
            (0..n).map(name).collect()
        };
        assert_eq!(listed(&threads(4)), r#""worker-0", "worker-1""#);
        assert!(listed(&threads(20)).ends_with(r#""worker-7" and 2 more"#));
        assert_eq!(listed(&[(Tid(1), "a\nb".into())]), r#""a\nb""#);
    }

    #[test]
    fn threads_are_chosen_by_id_and_by_name() {
        let decode = Pattern::new("decode-*").expect("a pattern");
        let choice = Choice {
            tids: vec![Tid(7)],
            names: vec![decode],
        };
        assert!(!choice.takes_all());
        assert!(choice.takes(Tid(7), "main"));
        assert!(choice.takes(Tid(8), "decode-1"));
        assert!(!choice.takes(Tid(8), "main"));
        assert!(Choice::all().takes_all() && Choice::all().takes(Tid(8), "main"));
    }
}
