//! Starts a program under the recorder, and stands in for it towards whoever started us.
//!
//! Three processes take part. The *front* process is the one that the user started: it is the
//! program's parent, passes signals on, stops when the program is stopped, and ends as it ends. The
//! *program* is a plain child of it, in the same process group and session, with everything that
//! the front process was given. The *tracer* is a process in a session of its own: the terminal's
//! signals do not reach it, and it can stay behind when the program leaves a daemon.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use maptrail_tracelog::record::Mechanism;
use maptrail_tracelog::types::{Pid, Tid};

use crate::background;
use crate::error::Error;
use crate::front::{self, FromTracer, Heard, Recording, ToFront};
use crate::journal::{self, Journal};
use crate::mechanism::{self, filter};
use crate::refusal::why_refused;
use crate::sys::spawn::{self, ChildState, SignalState, Signals, Start, status};
use crate::sys::{ptrace, timer};
use crate::tracer::{Limits, TICK, Task, Tracer};

/// How long the program waits for a disk that does not move, in sum, before the log is given up: it is
/// never held for ever by an output that hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// What to record.
pub struct Options {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Where the log goes. What a file holds is replaced once the program can be traced.
    pub log: File,
    /// How stops are made; chosen by what the kernel offers if `None`.
    pub mechanism: Option<Mechanism>,
    /// Record the processes that it makes, too.
    pub follow_forks: bool,
    /// How long to record; until the program ends if `None`.
    pub window: Option<Duration>,
    /// The log has standard output: nothing there is replaced, and the program's own output goes to
    /// standard error.
    pub log_is_stdout: bool,
}

/// How the program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Looks the program up as a shell would.
///
/// # Errors
/// [`Error::NotFound`] and [`Error::NotExecutable`].
pub fn find_program(name: &OsStr) -> Result<PathBuf, Error> {
    let shown = || name.to_string_lossy().into_owned();
    let candidates: Vec<PathBuf> = if name.as_bytes().contains(&b'/') {
        vec![PathBuf::from(name)]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .collect()
    };
    let mut refused = None;
    for candidate in candidates {
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if e.raw_os_error() == Some(libc::ENOTDIR) => {}
            Err(e) => refused = refused.or(Some(e)),
        }
    }
    Err(match refused {
        Some(source) => Error::NotExecutable {
            program: shown(),
            source,
        },
        None => Error::NotFound(shown()),
    })
}

fn executable(path: &Path) -> io::Result<()> {
    let meta = std::fs::metadata(path)?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)?;
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// Runs the program and records it. `say` is given remarks for the user. Must be called while this
/// process has one thread. Once the program runs, this process has `/dev/null` as standard input and
/// output, and no other descriptors open than standard error and what this function needs.
///
/// # Errors
/// See [`Error`]; the program has not run.
pub fn record(options: Options, say: &mut dyn FnMut(&str)) -> Result<(Ended, Recording), Error> {
    let mechanism = match options.mechanism {
        Some(Mechanism::Seccomp) | None if spawn::seccomp_can_trace() => Mechanism::Seccomp,
        Some(Mechanism::Seccomp) => return Err(Error::NoSeccomp),
        None => {
            say(
                "this kernel offers no seccomp filters: recording with --mechanism syscall, \
                 which stops at every system call",
            );
            Mechanism::Syscall
        }
        Some(other) => other,
    };
    background::check_machine()?;
    let before = spawn::block(Signals::Front).map_err(Error::system("blocking signals"))?;
    let outcome = launch(options, mechanism, before, say);
    spawn::restore_signals(&before);
    outcome
}

fn launch(
    options: Options,
    mechanism: Mechanism,
    before: SignalState,
    say: &mut dyn FnMut(&str),
) -> Result<(Ended, Recording), Error> {
    let signals = spawn::signal_fd(Signals::Front).map_err(Error::system("signalfd"))?;
    let (to_front, from_tracer) = front::pair().map_err(Error::system("socketpair"))?;
    let (at_tracer, at_program) = UnixStream::pair().map_err(Error::system("socketpair"))?;
    let (status, status_end) = io::pipe().map_err(Error::system("pipe"))?;

    let fork = || spawn::fork().map_err(Error::system("fork"));
    let Some(tracer) = fork()? else {
        let keep = [at_tracer.as_raw_fd(), options.log.as_raw_fd()];
        let bound = mechanism::binds(mechanism);
        background::trace(to_front, &keep, bound, |front| {
            trace_program(options, mechanism, at_tracer, front)
        });
    };
    drop((at_tracer, to_front));
    let filter = (mechanism == Mechanism::Seccomp).then(filter::program);
    let Some(program) = fork()? else {
        let start = Start {
            command: &options.command,
            signals: before,
            filter: filter.as_deref(),
            output_to_stderr: options.log_is_stdout,
            tracer,
        };
        spawn::become_program(&start, at_program, status_end);
    };
    drop((at_program, status_end));
    // The program has the limits that it was given; this process is about to be sent many files.
    spawn::raise_limits();
    let front = Front {
        name: options
            .command
            .first()
            .map(|w| w.to_string_lossy().into_owned())
            .unwrap_or_default(),
        program,
        tracer,
        mechanism,
    };
    // The log's descriptor belongs to the tracer from here on.
    drop(options);
    front.stand_in(signals, from_tracer, status, say)
}

fn trace_program(
    options: Options,
    mechanism: Mechanism,
    mut link: UnixStream,
    front: &mut ToFront,
) -> Result<Tracer, String> {
    let mut pid = [0; 4];
    link.read_exact(&mut pid)
        .map_err(|e| format!("the program could not be started: {e}"))?;
    let root = Pid(u32::from_le_bytes(pid));
    let tracing = mechanism::tracing(mechanism, options.follow_forks);
    ptrace::seize(Tid(root.0), tracing).map_err(|e| why_refused(Tid(root.0), &e))?;
    timer::start(TICK).map_err(|e| format!("setitimer: {e}"))?;
    let start_ns = timer::monotonic_ns();
    let command = options.command.iter();
    let command = command.map(|word| word.to_string_lossy().into_owned());
    let header = journal::header(command.collect(), mechanism, start_ns);
    let unwritten = |e| format!("the log cannot be written: {e}");
    if !options.log_is_stdout {
        journal::empty(&options.log).map_err(unwritten)?;
    }
    let journal = Journal::open(options.log, &header, start_ns, PATIENCE).map_err(unwritten)?;
    let task = Task {
        root,
        mechanism,
        follow_forks: options.follow_forks,
        limits: Limits {
            window_ns: options.window.map(|w| w.as_nanos() as u64),
            ..Limits::default()
        },
        front: Some(Pid(std::os::unix::process::parent_id())),
        attached: None,
    };
    let front = front.try_clone().map_err(|e| format!("dup: {e}"))?;
    let mut tracer = Tracer::new(task, Some(journal), front);
    tracer.expect_program();
    link.write_all(b"g")
        .map_err(|e| format!("the program could not be started: {e}"))?;
    Ok(tracer)
}

/// The front process while the program runs.
struct Front {
    name: String,
    program: Pid,
    tracer: Pid,
    mechanism: Mechanism,
}

impl Front {
    /// Stands in for the program until it has ended and its log is complete.
    fn stand_in(
        &self,
        signals: File,
        from_tracer: FromTracer,
        status: PipeReader,
        say: &mut dyn FnMut(&str),
    ) -> Result<(Ended, Recording), Error> {
        let mut status = Some(status);
        let mut tracer_lives = true;
        let mut ended = None;
        let mut report = None;
        let mut interrupted = false;
        let mut modules = Vec::new();
        let mut perf_maps = Vec::new();
        while ended.is_none() || (report.is_none() && tracer_lives && !interrupted) {
            let mut fds: Vec<&dyn AsRawFd> = vec![&signals];
            if tracer_lives {
                fds.push(&from_tracer);
            }
            if let Some(status) = &status {
                fds.push(status);
            }
            let ready = spawn::poll_readable(&fds, -1).map_err(Error::system("poll"))?;
            let is_ready = |n: usize| ready.get(n).copied().unwrap_or(false);
            let status_ready = is_ready(1 + usize::from(tracer_lives));
            if tracer_lives && is_ready(1) {
                match from_tracer.hear().map_err(Error::system("recvmsg"))? {
                    Heard::Note(text) | Heard::Started(text) => say(&text),
                    Heard::Modules(batch) => modules.extend(batch),
                    Heard::PerfMaps(batch) => perf_maps.extend(batch),
                    Heard::Done(done) => report = Some(done),
                    Heard::Refused(cause) => {
                        spawn::kill(self.program, libc::SIGKILL);
                        return Err(Error::Refused {
                            program: self.name.clone(),
                            cause,
                        });
                    }
                    Heard::Gone => {
                        tracer_lives = false;
                        if report.is_none() && ended.is_none() {
                            say(self.tracer_died());
                        }
                    }
                }
            }
            if let Some(pipe) = status.take_if(|_| status_ready) {
                self.started(pipe)?;
                // Where there is no /dev/null they stay open: no reason to leave a running program.
                spawn::survive_file_size_limit();
                let _ = spawn::let_go_of_streams(&[signals.as_raw_fd(), from_tracer.as_raw_fd()]);
            }
            while let Some(arrived) = spawn::read_signal(&signals) {
                match arrived.signal {
                    libc::SIGCHLD => {}
                    libc::SIGINT | libc::SIGTERM | libc::SIGHUP if ended.is_some() => {
                        // The program is gone, and the user will not wait for the log's end.
                        interrupted = true;
                    }
                    // A terminal that hangs up tells the leader of its session only.
                    libc::SIGHUP if arrived.from_kernel && spawn::leads_session() => {
                        spawn::kill(self.program, libc::SIGHUP);
                    }
                    // The whole process group has it already, the program among them.
                    _ if arrived.from_kernel => {}
                    libc::SIGTSTP => spawn::kill(self.program, libc::SIGTSTP),
                    signal => spawn::kill(self.program, signal),
                }
            }
            // One SIGCHLD may stand for several changes.
            loop {
                match spawn::child_state(self.program) {
                    ChildState::Exited(code) => ended = Some(Ended::Exited(code)),
                    ChildState::Killed(signal) => ended = Some(Ended::Killed(signal)),
                    ChildState::Stopped(signal) => {
                        spawn::stop_self(signal);
                        // Whoever continues this process group has continued its own only.
                        spawn::continue_other_group(self.program);
                        continue;
                    }
                    ChildState::Unchanged | ChildState::Gone => {}
                }
                break;
            }
            // Reaped here so that it does not linger as a zombie.
            let _ = spawn::child_state(self.tracer);
        }
        let recording = Recording {
            mechanism: self.mechanism,
            interrupted: interrupted && report.is_none(),
            report,
            modules,
            perf_maps,
        };
        Ok((ended.unwrap_or(Ended::Killed(libc::SIGKILL)), recording))
    }

    fn tracer_died(&self) -> &'static str {
        if mechanism::binds(self.mechanism) {
            "the recorder was killed, and the kernel killed the program with it; \
             the log holds all up to its last second (--mechanism syscall lets a program live on)"
        } else {
            "the recorder was killed; the program goes on, and the log holds all up to its last \
             second"
        }
    }

    /// Reads what the starting program wrote: nothing, if exec closed the pipe.
    fn started(&self, mut pipe: PipeReader) -> Result<(), Error> {
        let mut said = Vec::new();
        pipe.read_to_end(&mut said)
            .map_err(Error::system("reading from the starting program"))?;
        let mut said = said.as_slice();
        if let Some(rest) = said.strip_prefix(&[status::NO_NEW_PRIVS]) {
            said = rest;
        }
        let [tag, errno @ ..] = said else {
            return Ok(());
        };
        let errno = errno.try_into().map_or(0, i32::from_ne_bytes);
        let source = io::Error::from_raw_os_error(errno);
        let program = self.name.clone();
        Err(match (*tag, errno) {
            (status::FILTER_REFUSED, _) => Error::Refused {
                program,
                cause: format!(
                    "the kernel refused the seccomp filter ({source}); \
                     record with --mechanism syscall"
                ),
            },
            // It was found before.
            (_, libc::ENOENT) => Error::NoInterpreter(program),
            _ => Error::NotExecutable { program, source },
        })
    }
}
