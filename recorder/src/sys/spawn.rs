//! Starting processes: the tracer's own, and the recorded program's.

use std::ffi::{CString, OsString};
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;
use std::time::Duration;

use libc::{c_int, pid_t, sock_filter, sock_fprog};
use maptrail_tracelog::types::Pid;

use super::startup;

/// What a program inherits in matters of signals, where the front process needs it otherwise.
#[derive(Clone, Copy)]
pub struct SignalState {
    mask: libc::sigset_t,
    /// SIGCHLD was ignored: children would vanish without a word of how they ended.
    ignores_children: bool,
}

/// Signals that a front process handles itself instead of dying by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// All that a program may be sent, for the process that stands in for it.
    Front,
    /// Those that ask for an end.
    Ending,
}

impl Signals {
    fn set(self) -> libc::sigset_t {
        let ending = [libc::SIGCHLD, libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
        let others = [libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGTSTP];
        let others = others.into_iter().filter(|_| self == Signals::Front);
        // SAFETY: the set is emptied before signals are added.
        unsafe {
            let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
            libc::sigemptyset(&raw mut set);
            for signal in ending.into_iter().chain(others) {
                libc::sigaddset(&raw mut set, signal);
            }
            set
        }
    }
}

/// Blocks the signals that a front process reads from a descriptor; returns the state before.
pub fn block(signals: Signals) -> io::Result<SignalState> {
    let set = signals.set();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigprocmask reads one set and writes the other; the default action is no handler.
    unsafe {
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(SignalState {
            mask: before.assume_init(),
            ignores_children: libc::signal(libc::SIGCHLD, libc::SIG_DFL) == libc::SIG_IGN,
        })
    }
}

/// Puts the signals' state back.
pub fn restore_signals(before: &SignalState) {
    // SAFETY: sigprocmask reads one set; to ignore is no handler.
    unsafe {
        if before.ignores_children {
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const before.mask, ptr::null_mut());
    }
}

/// A descriptor that these signals can be read from while they are blocked.
pub fn signal_fd(signals: Signals) -> io::Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    let set = signals.set();
    // SAFETY: signalfd reads the set and returns a new descriptor, which nobody else owns.
    unsafe {
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::fs::File::from_raw_fd(fd))
    }
}

/// A signal that came to the front process.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Its number.
    pub signal: c_int,
    /// The kernel sent it (the terminal's Ctrl-C, say): the whole process group has it already.
    pub from_kernel: bool,
}

/// Reads one signal from the descriptor of [`signal_fd`], if one is there.
pub fn read_signal(mut fd: &std::fs::File) -> Option<Arrived> {
    let mut raw = [0u8; size_of::<libc::signalfd_siginfo>()];
    if fd.read(&mut raw).ok()? != raw.len() {
        return None;
    }
    let word = |at: usize| Some(i32::from_ne_bytes(raw.get(at..at + 4)?.try_into().ok()?));
    Some(Arrived {
        signal: word(0)?,
        // ssi_code is the third word; SI_KERNEL is 0x80.
        from_kernel: word(8)? == 0x80,
    })
}

/// Stops this process as `signal` would, until it is continued. Nothing else is let through: what
/// arrives meanwhile is the program's to handle.
pub fn stop_self(signal: c_int) {
    // SAFETY: plain signal calls on this process, put back afterwards; the default action is no
    // handler.
    unsafe {
        let mut only = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        let mut now = only;
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, signal);
        let action = libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const only, &raw mut now);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const now, ptr::null_mut());
        if action != libc::SIG_ERR {
            libc::signal(signal, action);
        }
    }
}

/// Forks this process, which must have one thread only. `None` in the child.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: with one thread no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Pid(pid as u32))),
    }
}

/// Ends this process at once: no destructors, no buffered output of the parent's.
pub fn exit_now(code: c_int) -> ! {
    // SAFETY: _exit always returns to nobody.
    unsafe { libc::_exit(code) }
}

/// Cuts this process loose from everything it inherited: a session of its own, no signal that others
/// send, `/dev/null` as standard descriptors, and no other descriptor than `keep`.
pub fn become_background(keep: &[RawFd]) -> io::Result<()> {
    // SAFETY: these calls change this process only; the caller owns the descriptors in `keep`, and
    // every other one belongs to nobody here (a fresh fork of a single-threaded process).
    unsafe {
        libc::setsid();
        let mut none = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut none);
        for signal in 1..=libc::SIGRTMAX() {
            let how = match signal {
                // Faults of our own; what the tracer lives by; what cannot be ignored.
                libc::SIGILL
                | libc::SIGTRAP
                | libc::SIGABRT
                | libc::SIGBUS
                | libc::SIGFPE
                | libc::SIGSEGV
                | libc::SIGSYS
                | libc::SIGCHLD
                | libc::SIGALRM
                | libc::SIGKILL
                | libc::SIGSTOP => libc::SIG_DFL,
                // Sent to all processes of a service, a user, a terminal, a limit: none of it may
                // take a program down whose recorder this is.
                _ => libc::SIG_IGN,
            };
            // The two signals of the C library's own are refused.
            libc::signal(signal, how);
        }
        // Stops are waited for; a signal for each would be thrown away.
        let mut quiet = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        quiet.sa_flags = libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &raw const quiet, ptr::null_mut());
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        // Nothing is looked for in a directory, and none is kept from being unmounted.
        libc::chdir(c"/".as_ptr());
    }
    silence(&[0, 1, 2])?;
    close_all_but(keep)
}

/// Lets go of the program's input and output: while somebody else has them open, a pipe does not end
/// when the program closes it. Keeps standard error and `keep`.
pub fn let_go_of_streams(keep: &[RawFd]) -> io::Result<()> {
    silence(&[0, 1])?;
    close_all_but(keep)
}

/// From now on a write that would exceed the limit of a file's size fails, and does not kill this process.
pub fn survive_file_size_limit() {
    // SAFETY: to ignore is no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Puts `/dev/null` in the place of these descriptors.
fn silence(fds: &[RawFd]) -> io::Result<()> {
    // SAFETY: open returns a new descriptor; what it replaces are standard ones, which nobody owns.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null < 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in fds {
            libc::dup2(null, *fd);
        }
        if null > 2 {
            libc::close(null);
        }
    }
    Ok(())
}

/// Closes every descriptor from 3 on but those in `keep`.
fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.iter().copied().chain([RawFd::MAX]) {
        if from < fd {
            // SAFETY: the caller owns the descriptors in `keep`; the others belong to nobody.
            let answer = unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
            if answer < 0 {
                return close_each_but(&keep);
            }
        }
        from = from.max(fd.saturating_add(1));
    }
    Ok(())
}

/// The same before Linux 5.9, which has no close_range(2).
fn close_each_but(keep: &[RawFd]) -> io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !keep.contains(fd)) {
        // SAFETY: as above. The one that the list was read through is closed already.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Has this process end when its first thread has (in a thread of its own), or if that does not end for a
/// second.
pub fn end_after_this_thread() -> io::Result<()> {
    let first = format!("/proc/self/task/{}/stat", std::process::id());
    let wait = move || {
        for _ in 0..1000 {
            let ended = |stat: String| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, s)| s.starts_with('Z'))
            };
            if std::fs::read_to_string(&first).map_or(true, ended) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        exit_now(0);
    };
    let others = std::thread::Builder::new().name("maptrail-end".into());
    others.spawn(move || {
        super::timer::block_signals_in_this_thread();
        wait();
    })?;
    Ok(())
}

/// Ends this thread alone, which is quicker than the end of a process: nothing is freed or closed. The
/// kernel lets go of all that it traces.
pub fn end_this_thread() -> ! {
    loop {
        // SAFETY: the call ends the thread, whatever it is in the midst of; nobody waits for it to unwind.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

/// Raises this process's limits as far as it may: they were meant for the program.
pub fn raise_limits() {
    let limits = [
        libc::RLIMIT_NOFILE,
        libc::RLIMIT_CPU,
        libc::RLIMIT_STACK,
        libc::RLIMIT_AS,
        libc::RLIMIT_DATA,
    ];
    for what in limits {
        // SAFETY: getrlimit writes and setrlimit reads one struct.
        unsafe {
            let mut limit = MaybeUninit::<libc::rlimit>::zeroed().assume_init();
            if libc::getrlimit(what, &raw mut limit) < 0 {
                continue;
            }
            if what != libc::RLIMIT_NOFILE {
                let none = libc::rlimit {
                    rlim_cur: libc::RLIM_INFINITY,
                    rlim_max: libc::RLIM_INFINITY,
                };
                // Root may.
                if libc::setrlimit(what, &raw const none) == 0 {
                    continue;
                }
            }
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(what, &raw const limit);
        }
    }
}

/// How the recorded program is started, by the process that is to become it.
pub struct Start<'a> {
    /// Argument vector; the first is looked up in PATH.
    pub command: &'a [OsString],
    /// The signals' state that it gets.
    pub signals: SignalState,
    /// Filter to install, if stops are made by seccomp.
    pub filter: Option<&'a [sock_filter]>,
    /// Send its standard output to standard error (the log has standard output).
    pub output_to_stderr: bool,
    /// The tracer's process, which Yama must be told of.
    pub tracer: Pid,
}

/// Tags of the messages that a starting process writes before it execs.
pub mod status {
    /// The filter could be installed only with no_new_privs.
    pub const NO_NEW_PRIVS: u8 = b'N';
    /// The filter was refused; four bytes of errno follow.
    pub const FILTER_REFUSED: u8 = b'F';
    /// exec was refused; four bytes of errno follow.
    pub const EXEC_REFUSED: u8 = b'E';
}

/// Waits for the tracer, then becomes the program. Runs in a fresh fork; comes back only in failure.
/// `tracer` is a stream to the tracer's process, `status` is closed by exec.
pub fn become_program(
    start: &Start<'_>,
    mut tracer: impl Read + Write,
    mut status: impl Write,
) -> ! {
    // SAFETY: plain calls on this process. Yama (if it is there) lets no process trace another that
    // is not its descendant, unless that one agrees; the agreement is taken back once it is traced.
    unsafe {
        libc::prctl(
            libc::PR_SET_PTRACER,
            libc::c_ulong::from(start.tracer.0),
            0,
            0,
            0,
        );
    }
    let mut go = [0];
    if tracer.write_all(&std::process::id().to_le_bytes()).is_err()
        || tracer.read_exact(&mut go).is_err()
    {
        exit_now(127);
    }
    drop(tracer);
    // SAFETY: plain calls on this process; signal sets and handlers as this process was given them.
    unsafe {
        libc::prctl(libc::PR_SET_PTRACER, 0, 0, 0, 0);
        if !startup::sigpipe_was_ignored() {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        restore_signals(&start.signals);
        if start.output_to_stderr {
            libc::dup2(2, 1);
        }
        for fd in 0..3 {
            if startup::was_closed(fd) {
                libc::close(fd);
            }
        }
    }
    let mut report = |tag: u8, error: &io::Error| {
        let errno = error.raw_os_error().unwrap_or(0).to_ne_bytes();
        let _ = status.write_all(&[tag, errno[0], errno[1], errno[2], errno[3]]);
    };
    let words: Result<Vec<CString>, _> = start
        .command
        .iter()
        .map(|word| CString::new(word.clone().into_vec()))
        .collect();
    let Ok(words) = words else {
        report(
            status::EXEC_REFUSED,
            &io::Error::from_raw_os_error(libc::EINVAL),
        );
        exit_now(127);
    };
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|w| w.as_ptr()).collect();
    argv.push(ptr::null());
    if let Some(filter) = start.filter {
        match install_filter(filter) {
            Ok(false) => {}
            Ok(true) => {
                let _ = status.write_all(&[status::NO_NEW_PRIVS]);
            }
            Err(error) => {
                report(status::FILTER_REFUSED, &error);
                exit_now(127);
            }
        }
    }
    if let Some(first) = argv.first() {
        // SAFETY: argv is a NULL-terminated vector of C strings that live until exec or _exit.
        unsafe {
            libc::execvp(*first, argv.as_ptr());
        }
    }
    let error = io::Error::last_os_error();
    // The error pipe is written with one plain write; nothing between the filter and here maps.
    let errno = error.raw_os_error().unwrap_or(0).to_ne_bytes();
    let _ = status.write_all(&[status::EXEC_REFUSED, errno[0], errno[1], errno[2], errno[3]]);
    exit_now(127)
}

/// Installs a seccomp filter for this process. Without the privilege to do so plainly it sets
/// no_new_privs first, and says so by `true`.
fn install_filter(filter: &[sock_filter]) -> io::Result<bool> {
    let program = sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    let set = || {
        // SAFETY: the kernel copies the program; it does not write to it.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                &raw const program,
            )
        };
        if answer < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    match set() {
        Ok(()) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            // SAFETY: a plain prctl on this process.
            if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            set().map(|()| true)
        }
        Err(error) => Err(error),
    }
}

/// Whether the kernel has seccomp filters that can ask a tracer.
#[must_use]
pub fn seccomp_can_trace() -> bool {
    let action: u32 = libc::SECCOMP_RET_TRACE;
    // SAFETY: the kernel reads one u32.
    unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        ) == 0
    }
}

/// What became of a child process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildState {
    /// It exited with this code.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// This signal stopped it.
    Stopped(i32),
    /// Nothing new.
    Unchanged,
    /// There is no such child (any more).
    Gone,
}

/// Asks, without waiting, what became of child `pid`.
pub fn child_state(pid: Pid) -> ChildState {
    wait_for_child(pid, libc::WNOHANG | libc::WUNTRACED)
}

/// Waits for the end of child `pid`, and says how it came.
pub fn child_ended(pid: Pid) -> ChildState {
    wait_for_child(pid, 0)
}

fn wait_for_child(pid: Pid, flags: c_int) -> ChildState {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    let answer = unsafe { libc::waitpid(pid.0 as pid_t, &raw mut status, flags) };
    match answer {
        0 => ChildState::Unchanged,
        n if n < 0 => ChildState::Gone,
        _ if libc::WIFEXITED(status) => ChildState::Exited(libc::WEXITSTATUS(status)),
        _ if libc::WIFSIGNALED(status) => ChildState::Killed(libc::WTERMSIG(status)),
        _ if libc::WIFSTOPPED(status) => ChildState::Stopped(libc::WSTOPSIG(status)),
        _ => ChildState::Unchanged,
    }
}

/// Sends a signal.
pub fn kill(pid: Pid, signal: c_int) {
    // SAFETY: kill takes integers.
    unsafe {
        libc::kill(pid.0 as pid_t, signal);
    }
}

/// Interrupts what this process's main thread waits for, as a tick of its timer does.
pub fn wake_self() {
    // SAFETY: kill takes integers; the signal has a handler in every process that calls this.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGALRM);
    }
}

/// Continues a child that is in another process group than this process.
pub fn continue_other_group(child: Pid) {
    // SAFETY: these calls take and return integers.
    unsafe {
        if libc::getpgid(child.0 as pid_t) != libc::getpgrp() {
            libc::kill(child.0 as pid_t, libc::SIGCONT);
        }
    }
}

/// Whether this process leads its session.
#[must_use]
pub fn leads_session() -> bool {
    // SAFETY: both return integers.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// Waits until one of the descriptors can be read (or hung up), or `timeout_ms` passed (-1: for
/// ever). Returns which.
pub fn poll_readable(fds: &[&dyn AsRawFd], timeout_ms: c_int) -> io::Result<Vec<bool>> {
    let mut polls: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: poll reads and writes the array of the length that it is given.
    let n = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout_ms) };
    if n < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
    Ok(polls.iter().map(|p| p.revents != 0).collect())
}
