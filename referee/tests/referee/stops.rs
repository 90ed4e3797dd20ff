//! Stops all threads of a running process, at a random instant or at its memory calls.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A thread of a [`Stop`], and the signal that it is owed.
type Held = (Pid, Option<Signal>);

/// A process whose threads are all stopped. Dropping lets them go.
pub struct Stop {
    pid: Pid,
    held: Vec<Held>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The threads of a process.
fn threads(pid: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .collect()
}

/// The state of a thread: 'R', 'S', 'T', ...
fn state(tid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits for a thread that was asked to stop; `None` if it has ended.
fn wait(tid: Pid) -> Option<WaitStatus> {
    loop {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        match waitpid(tid, Some(flags)).ok()? {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return None,
            // The first thread of a process says nothing while others are there.
            WaitStatus::StillAlive if state(tid) == Some('Z') => return None,
            WaitStatus::StillAlive => sleep(Duration::from_micros(50)),
            status => return Some(status),
        }
    }
}

/// The signal that a stop holds back.
fn owed(status: WaitStatus) -> Option<Signal> {
    match status {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => None,
        WaitStatus::Stopped(_, signal) => Some(signal),
        _ => None,
    }
}

impl Stop {
    /// Stops all threads, wherever they are.
    pub fn all(pid: Pid) -> Stop {
        let mut held: Vec<Held> = Vec::new();
        loop {
            let known = |tid: &Pid| held.iter().any(|(known, _)| known == tid);
            let new: Vec<Pid> = threads(pid).into_iter().filter(|t| !known(t)).collect();
            let seized: Vec<Pid> = new
                .into_iter()
                .filter(|&tid| ptrace::seize(tid, ptrace::Options::PTRACE_O_TRACESYSGOOD).is_ok())
                .collect();
            if seized.is_empty() {
                return Stop { pid, held };
            }
            for &tid in &seized {
                let _ = ptrace::interrupt(tid);
            }
            for tid in seized {
                if let Some(status) = wait(tid) {
                    held.push((tid, owed(status)));
                }
            }
        }
    }

    pub fn threads(&self) -> Vec<Pid> {
        self.held.iter().map(|(tid, _)| *tid).collect()
    }

    /// The signal that a thread is owed, which the caller now has to give it.
    pub fn take_owed(&mut self, tid: Pid) -> Option<Signal> {
        let held = self.held.iter_mut().find(|(held, _)| *held == tid);
        held.and_then(|(_, signal)| signal.take())
    }

    /// Leaves the threads stopped where they are, for somebody else to trace while `f` runs.
    pub fn hand_over<T>(mut self, f: impl FnOnce() -> T) -> T {
        let pid = self.pid;
        let tids = self.threads();
        kill(pid, Signal::SIGSTOP).unwrap();
        self.let_go();
        let deadline = Instant::now() + Duration::from_secs(5);
        while tids
            .iter()
            .any(|&tid| !matches!(state(tid), Some('T') | None))
        {
            assert!(Instant::now() < deadline, "a thread of {pid} does not stop");
            sleep(Duration::from_millis(1));
        }
        let result = f();
        kill(pid, Signal::SIGCONT).unwrap();
        result
    }

    /// Lets all threads run until they have arrived at `calls` system calls for which `wanted` holds, or
    /// `time` is over. Hands each such thread to `arrived`, which says whether it has moved it on.
    pub fn at_calls(
        mut self,
        calls: usize,
        time: Duration,
        wanted: impl Fn(u64) -> bool,
        mut arrived: impl FnMut(Pid) -> bool,
    ) {
        let mut running = HashSet::new();
        for (tid, signal) in self.held.drain(..) {
            if ptrace::syscall(tid, signal).is_ok() {
                running.insert(tid);
            }
        }
        let deadline = Instant::now() + time;
        let mut left = calls;
        let mut entered: HashMap<Pid, bool> = HashMap::new();
        let mut ending = false;
        while !running.is_empty() {
            if !ending && (left == 0 || Instant::now() > deadline) {
                ending = true;
                for tid in &running {
                    let _ = ptrace::interrupt(*tid);
                }
            }
            let any = Pid::from_raw(-1);
            let mut flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            flags.set(WaitPidFlag::WNOHANG, !ending);
            let Ok(status) = waitpid(any, Some(flags)) else {
                break;
            };
            if status == WaitStatus::StillAlive {
                sleep(Duration::from_micros(100));
                continue;
            }
            let Some(tid) = status.pid() else { continue };
            if !running.contains(&tid) {
                continue;
            }
            if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)) {
                running.remove(&tid);
                continue;
            }
            if let WaitStatus::PtraceSyscall(_) = status {
                let entry = entered.entry(tid).or_default();
                *entry = !*entry;
                let is_wanted = |regs: &libc::user_regs_struct| *entry && wanted(regs.orig_rax);
                if !ending && left > 0 && ptrace::getregs(tid).is_ok_and(|regs| is_wanted(&regs)) {
                    left -= 1;
                    *entry &= !arrived(tid);
                }
            }
            if ending {
                running.remove(&tid);
                self.held.push((tid, owed(status)));
            } else {
                let _ = ptrace::syscall(tid, owed(status));
            }
        }
    }

    fn let_go(&mut self) {
        for (tid, signal) in self.held.drain(..) {
            let _ = ptrace::detach(tid, signal);
        }
    }
}
