//! Small facts about a process from `/proc`. A fact that cannot be read (the process died) is empty.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

use maptrail_tracelog::types::{Addr, Pid, Range, Tid};

use crate::sys::attribute;

/// The text of a file about a thread. A name in it is cut at 15 bytes, wherever its characters end.
pub fn read_text(path: &str) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// `comm` of a thread.
#[must_use]
pub fn comm(tid: Tid) -> String {
    let text = read_text(&format!("/proc/{tid}/comm")).unwrap_or_default();
    text.trim_end().to_owned()
}

/// The process that a thread belongs to.
#[must_use]
pub fn process_of(tid: Tid) -> Option<Pid> {
    status_field(tid, "Tgid")?.parse().ok().map(Pid)
}

/// The pid that a thread's process itself sees: that of the innermost pid namespace.
#[must_use]
pub fn pid_inside(tid: Tid) -> Option<Pid> {
    let status = Status::of(tid);
    let pids = status.field("NStgid").or_else(|| status.field("Tgid"))?;
    pids.split_whitespace().last()?.parse().ok().map(Pid)
}

/// The effective user id.
#[must_use]
pub fn effective_uid(tid: Tid) -> Option<u32> {
    effective_id(tid, "Uid")
}

/// The effective one of the ids in `Uid` or `Gid`.
fn effective_id(tid: Tid, key: &str) -> Option<u32> {
    status_field(tid, key)?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// The process that started it.
#[must_use]
pub fn parent_of(pid: Pid) -> Option<Pid> {
    let parent = stat_field(Tid(pid.0), 4)?;
    u32::try_from(parent).ok().filter(|pid| *pid != 0).map(Pid)
}

/// The process that traces it, if any.
#[must_use]
pub fn tracer_of(tid: Tid) -> Option<Pid> {
    let pid = status_field(tid, "TracerPid")?.parse().ok()?;
    (pid != 0).then_some(Pid(pid))
}

fn status_field(tid: Tid, key: &str) -> Option<String> {
    Status::of(tid).field(key).map(str::to_owned)
}

/// Whether a signal does nothing to a thread's process: it is ignored, or it has no handler and is
/// one of `by_default`.
#[must_use]
pub fn ignores(tid: Tid, signal: i32, by_default: &[i32]) -> bool {
    let status = Status::of(tid);
    (1..=64).contains(&signal) && status.ignored(by_default) & bit(signal) != 0
}

/// Whether a signal is about to be delivered to a thread that is not ignored, as in [`ignores`].
#[must_use]
pub fn awaits_signal(tid: Tid, by_default: &[i32]) -> bool {
    let status = Status::of(tid);
    let pending = status.mask("SigPnd") | status.mask("ShdPnd");
    pending & !status.mask("SigBlk") & !status.ignored(by_default) != 0
}

/// Whether a thread has been killed and is about to notice. Of a process that dies each thread has its own
/// SIGKILL.
#[must_use]
pub fn is_killed(tid: Tid) -> bool {
    Status::of(tid).mask("SigPnd") & bit(libc::SIGKILL) != 0
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// `/proc/TID/status`.
struct Status(String);

impl Status {
    fn of(tid: Tid) -> Status {
        Status(read_text(&format!("/proc/{tid}/status")).unwrap_or_default())
    }

    fn field(&self, key: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(str::trim)
    }

    /// A set of signals; empty if it is not shown.
    fn mask(&self, key: &str) -> u64 {
        let hex = self.field(key).unwrap_or_default();
        u64::from_str_radix(hex, 16).unwrap_or(0)
    }

    fn ignored(&self, by_default: &[i32]) -> u64 {
        let by_default = by_default.iter().map(|signal| bit(*signal)).sum::<u64>();
        self.mask("SigIgn") | (by_default & !self.mask("SigCgt"))
    }
}

/// Field `start_brk` of `/proc/TID/stat` (proc_pid_stat(5), field 47); 0 if it is not shown.
#[must_use]
pub fn start_brk(tid: Tid) -> Addr {
    Addr(stat_field(tid, 47).unwrap_or(0))
}

/// Where this process's command line lies in its memory (fields 48 and 49).
#[must_use]
pub fn arguments_of_this_process() -> Option<Range> {
    let me = Tid(std::process::id());
    let range = Range {
        start: Addr(stat_field(me, 48)?),
        end: Addr(stat_field(me, 49)?),
    };
    (range.start < range.end && range.start != Addr(0)).then_some(range)
}

/// The core that a thread runs on, or ran on last (field 39).
#[must_use]
pub fn core_of(tid: Tid) -> Option<usize> {
    usize::try_from(stat_field(tid, 39)?).ok()
}

/// A number in `/proc/TID/stat`; fields count from 1.
fn stat_field(tid: Tid, number: usize) -> Option<u64> {
    let text = read_text(&format!("/proc/{tid}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is field 3.
    let (_, after) = text.rsplit_once(')')?;
    after
        .split_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

/// Every process that is seen.
pub fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid))
}

/// Every thread that this process traces.
pub fn traced_by_this_process() -> impl Iterator<Item = Tid> {
    let me = Pid(std::process::id());
    let threads = processes().flat_map(threads_of);
    threads.filter(move |tid| tracer_of(*tid) == Some(me))
}

/// How many mappings the kernel lets a space have; 0 if it does not say.
#[must_use]
pub fn max_mappings() -> usize {
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// What a thread does at this moment (proc_pid_syscall(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It runs, in the program or in the kernel.
    Runs,
    /// It sleeps in this call, or is stopped in it.
    Call {
        /// Its number.
        number: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// It is stopped, and in no call.
    Nothing,
}

/// What a thread does. Whoever may not trace it may not know.
pub fn doing(tid: Tid) -> io::Result<Doing> {
    let text = fs::read_to_string(format!("/proc/{tid}/syscall"))?;
    let mut words = text.split_whitespace();
    let number = match words.next() {
        Some("running") => return Ok(Doing::Runs),
        Some(first) => first.parse(),
        None => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
    };
    let Ok(number) = number else {
        return Ok(Doing::Nothing);
    };
    let mut args = [0; 6];
    for (arg, word) in args.iter_mut().zip(words) {
        let hex = word.trim_start_matches("0x");
        *arg = u64::from_str_radix(hex, 16).map_err(io::Error::other)?;
    }
    Ok(Doing::Call { number, args })
}

/// What a thread had of the processor (proc_pid_schedstat: time on it, time waiting for it, turns).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// CPU time, nanoseconds.
    pub ran_ns: u64,
    /// How often it was given the processor.
    pub turns: u64,
}

/// What a thread had of the processor; `None` if it is gone, or the kernel does not count.
#[must_use]
pub fn turns(tid: Tid) -> Option<Turns> {
    let text = fs::read_to_string(format!("/proc/{tid}/schedstat")).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse);
    let ran_ns = numbers.next()?.ok()?;
    let turns = numbers.nth(1)?.ok()?;
    // A kernel that does not count says 0 of everybody.
    (turns > 0).then_some(Turns { ran_ns, turns })
}

/// How often a thread gave the processor up by itself.
#[must_use]
pub fn sleeps(tid: Tid) -> Option<u64> {
    status_field(tid, "voluntary_ctxt_switches")?.parse().ok()
}

/// Whether a thread has made processes that are still there; `false` where the kernel does not tell
/// (CONFIG_PROC_CHILDREN).
#[must_use]
pub fn has_children(tid: Tid) -> bool {
    read_text(&format!("/proc/{tid}/task/{tid}/children")).is_ok_and(|list| !list.is_empty())
}

/// What a descriptor of a thread refers to, as the link in `/proc/PID/fd` names it; `pipe:` for pipes that
/// have names, too.
#[must_use]
pub fn descriptor(tid: Tid, fd: u64) -> String {
    let path = format!("/proc/{tid}/fd/{fd}");
    let link = fs::read_link(&path);
    let name = link.map_or_else(
        |_| String::new(),
        |name| name.to_string_lossy().into_owned(),
    );
    // A file's own server need not be asked about what the name tells already.
    let file = name.starts_with('/') && !name.starts_with("/dev/");
    match file && attribute::is_pipe(&path) {
        true => "pipe:".into(),
        false => name,
    }
}

/// Whether reads and writes through a descriptor of a thread never wait (proc_pid_fdinfo(5), `flags`).
#[must_use]
pub fn is_nonblocking(tid: Tid, fd: u64) -> bool {
    let text = read_text(&format!("/proc/{tid}/fdinfo/{fd}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_NONBLOCK != 0)
}

/// Whether a thread is gone, or a zombie.
#[must_use]
pub fn is_dead(tid: Tid) -> bool {
    let state = status_field(tid, "State").unwrap_or_default();
    matches!(state.as_bytes().first(), None | Some(b'Z' | b'X'))
}

/// The threads of a process, ascending.
#[must_use]
pub fn threads_of(pid: Pid) -> Vec<Tid> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let mut tids: Vec<Tid> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Tid))
        .collect();
    tids.sort_unstable();
    tids
}

/// Whether a thread may stand inside the system call `number` right now (`/proc/TID/syscall` says
/// `running` or the number; proc_pid_syscall(5)).
#[must_use]
pub fn may_be_in_call(tid: Tid, number: u64) -> bool {
    let text = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    match text.split_whitespace().next() {
        Some(first) => first == "running" || first.parse() == Ok(number),
        None => true,
    }
}

/// The threads of this very process.
pub fn threads_of_this_process() -> impl Iterator<Item = Tid> {
    let entries = fs::read_dir("/proc/self/task").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Tid))
}

/// The program that it runs, and its arguments.
#[must_use]
pub fn program(tid: Tid) -> (String, Vec<String>) {
    let exe = fs::read_link(format!("/proc/{tid}/exe"))
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default();
    let raw = fs::read(format!("/proc/{tid}/cmdline")).unwrap_or_default();
    let raw = raw.strip_suffix(b"\0").unwrap_or(&raw);
    let argv = raw
        .split(|b| *b == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    (exe, argv)
}

/// What the program file is, if it should give privileges and this process has not got them.
#[must_use]
pub fn without_its_privileges(tid: Tid) -> Option<&'static str> {
    let exe = format!("/proc/{tid}/exe");
    let meta = fs::metadata(&exe).ok()?;
    let lacks = |bits, key, owner| {
        meta.mode() & bits == bits && effective_id(tid, key).is_some_and(|id| id != owner)
    };
    // Set-group-ID without group execute means something else: mandatory locking.
    if lacks(libc::S_ISUID, "Uid", meta.uid()) {
        Some("a set-user-ID program")
    } else if lacks(libc::S_ISGID | libc::S_IXGRP, "Gid", meta.gid()) {
        Some("a set-group-ID program")
    } else if effective_uid(Tid(std::process::id())) != Some(0)
        && attribute::is_there(&exe, "security.capability")
    {
        Some("a program with file capabilities")
    } else {
        None
    }
}

/// Whether `/proc` tells of the processes that this one sees.
#[must_use]
pub fn is_ours() -> bool {
    let me = std::process::id().to_string();
    fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == me.as_str())
}

/// Opens `/proc/TID/maps`.
pub fn open_maps(tid: Tid) -> io::Result<File> {
    File::open(format!("/proc/{tid}/maps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_process() {
        let me = Tid(std::process::id());
        assert_eq!(process_of(me), Some(Pid(me.0)));
        assert_eq!(pid_inside(me), Some(Pid(me.0)));
        assert!(!comm(me).is_empty());
        assert_ne!(start_brk(me), Addr(0));
        let (exe, argv) = program(me);
        assert!(exe.starts_with('/'), "{exe}");
        assert!(!argv.is_empty());
        assert!(effective_uid(me).is_some());
        assert!(effective_id(me, "Gid").is_some());
        assert_eq!(without_its_privileges(me), None);
        assert_eq!(tracer_of(me), None);
        assert_eq!(process_of(Tid(u32::MAX)), None);
    }
}
