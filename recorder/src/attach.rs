//! Attaches to a program that runs, for a window, and leaves it as it was.
//!
//! Two processes take part. The *front* process is the one that the user started: it tells the tracer
//! when the user has seen enough, and waits for the log. The *tracer* is a process in a session of its
//! own. If it dies the kernel lets the program go; if it is stopped its guard kills it; if the front
//! process dies it closes the window.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use maptrail_tracelog::record::Mechanism;
use maptrail_tracelog::types::Pid;

use crate::background;
use crate::error::Error;
use crate::footprint::{self, Rank};
use crate::front::{self, FromTracer, Heard, Recording, ToFront};
use crate::journal::Journal;
use crate::sys::guard::Guard;
use crate::sys::spawn::{self, ChildState, Signals};
use crate::sys::{asked, timer};
use crate::target::{Choice, Target};
use crate::tracer::{Attached, Limits, OPENING_TICK, Task, Tracer};

/// A tracer that gives no sign of life for so long is killed, and the program is free.
const GUARD: Duration = Duration::from_secs(2);
/// How long the program waits for a slow output in sum, before the log is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to attach to.
pub struct AttachOptions {
    /// The process.
    pub target: Target,
    /// Where the log goes. What a file holds is replaced once the process can be traced.
    pub log: File,
    /// Nothing of the log's output is replaced.
    pub log_is_stdout: bool,
    /// Which threads to follow.
    pub choice: Choice,
    /// Record the processes that it makes, too.
    pub follow_forks: bool,
    /// How stops are made; chosen if `None`.
    pub mechanism: Option<Mechanism>,
    /// How long the window is; until it is closed if `None`.
    pub window: Option<Duration>,
    /// By how much a thread may be slowed down, in percent of its time.
    pub max_slowdown_percent: Option<u32>,
    /// How large the log may become, bytes.
    pub max_log_bytes: Option<u64>,
}

/// Records a running process until the window closes. `warn` is given remarks for the user, `tell` how
/// things stand. Must be called while this process has one thread.
///
/// # Errors
/// See [`Error`]; the process was left as it was.
pub fn attach(
    options: AttachOptions,
    warn: &mut dyn FnMut(&str),
    tell: &mut dyn FnMut(&str),
) -> Result<Recording, Error> {
    background::check_machine()?;
    let mechanism = options.mechanism.unwrap_or(Mechanism::Syscall);
    let before = spawn::block(Signals::Ending).map_err(Error::system("blocking signals"))?;
    let outcome = begin(options, mechanism, warn, tell);
    spawn::restore_signals(&before);
    outcome
}

fn begin(
    options: AttachOptions,
    mechanism: Mechanism,
    warn: &mut dyn FnMut(&str),
    tell: &mut dyn FnMut(&str),
) -> Result<Recording, Error> {
    let signals = spawn::signal_fd(Signals::Ending).map_err(Error::system("signalfd"))?;
    let (to_front, from_tracer) = front::pair().map_err(Error::system("socketpair"))?;
    let me = std::process::id();
    let name = options.target.name.clone();
    let Some(tracer) = spawn::fork().map_err(Error::system("fork"))? else {
        let keep = [Some(options.log.as_raw_fd()), options.target.descriptor()];
        let keep: Vec<RawFd> = keep.into_iter().flatten().collect();
        background::trace(to_front, &keep, false, |front| {
            trace_target(options, mechanism, me, front)
        });
    };
    drop((to_front, options));
    footprint::be_first_to_go(Rank::First);
    spawn::raise_limits();
    spawn::survive_file_size_limit();
    wait_for(tracer, &name, mechanism, &signals, &from_tracer, warn, tell)
}

/// The tracer's process: begins to trace.
fn trace_target(
    options: AttachOptions,
    mechanism: Mechanism,
    parent: u32,
    front: &mut ToFront,
) -> Result<Tracer, String> {
    let target = options.target;
    asked::listen();
    if std::os::unix::process::parent_id() != parent {
        return Err("the command that started the recorder is gone".into());
    }
    footprint::be_first_to_go(Rank::Second);
    footprint::be_served_soon();
    let guard = Guard::new(GUARD).map_err(|e| format!("the guard's timer: {e}"))?;
    let unwritten = |e: io::Error| format!("the log cannot be written: {e}");
    let log = Journal::prepare(options.log, options.log_is_stdout, PATIENCE).map_err(unwritten)?;
    let task = Task {
        root: target.pid,
        mechanism,
        follow_forks: options.follow_forks,
        limits: Limits {
            window_ns: options.window.map(|w| w.as_nanos() as u64),
            log_bytes: options.max_log_bytes,
            slowdown_percent: options.max_slowdown_percent.map(u64::from),
            ..Limits::of_attached()
        },
        front: None,
        attached: Some(Attached {
            target,
            choice: options.choice,
            guard,
            log: Some(log),
        }),
    };
    let front = front.try_clone().map_err(|e| format!("dup: {e}"))?;
    let mut tracer = Tracer::new(task, None, front);
    tracer.learn_code();
    timer::start(OPENING_TICK).map_err(|e| format!("setitimer: {e}"))?;
    tracer.begin_opening();
    Ok(tracer)
}

/// The front process, until the log is complete.
fn wait_for(
    tracer: Pid,
    name: &str,
    mechanism: Mechanism,
    signals: &File,
    from_tracer: &FromTracer,
    warn: &mut dyn FnMut(&str),
    tell: &mut dyn FnMut(&str),
) -> Result<Recording, Error> {
    let mut recording = Recording {
        mechanism,
        interrupted: false,
        report: None,
        modules: Vec::new(),
        perf_maps: Vec::new(),
    };
    let (mut asked, mut refused) = (false, None);
    // When the tracer is gone the program is as it was before.
    loop {
        let ready =
            spawn::poll_readable(&[signals, from_tracer], -1).map_err(Error::system("poll"))?;
        while let Some(arrived) = spawn::read_signal(signals) {
            match arrived.signal {
                libc::SIGCHLD => {}
                // The second time the user will not wait.
                _ if asked => {
                    recording.interrupted = recording.report.is_none();
                    return Ok(recording);
                }
                _ => {
                    asked = true;
                    spawn::kill(tracer, libc::SIGTERM);
                }
            }
        }
        if ready.get(1) != Some(&true) {
            continue;
        }
        match from_tracer.hear().map_err(Error::system("recvmsg"))? {
            Heard::Note(text) => warn(&text),
            Heard::Started(text) => tell(&text),
            Heard::Modules(batch) => recording.modules.extend(batch),
            Heard::PerfMaps(batch) => recording.perf_maps.extend(batch),
            Heard::Done(done) => recording.report = Some(done),
            Heard::Refused(cause) => {
                refused = Some(cause);
            }
            Heard::Gone => {
                let how = spawn::child_ended(tracer);
                if let Some(cause) = refused {
                    let program = name.into();
                    return Err(Error::Refused { program, cause });
                }
                if recording.report.is_none() {
                    warn(&how_it_died(how));
                }
                return Ok(recording);
            }
        }
    }
}

fn how_it_died(how: ChildState) -> String {
    let how = match how {
        ChildState::Killed(libc::SIGKILL) => {
            "the recorder was killed: by somebody, for want of memory, or by its own guard because it \
             had stood still for 2 s (a stop signal, a debugger, a limit of CPU time)"
                .to_owned()
        }
        ChildState::Killed(signal) => format!("the recorder was killed by signal {signal}"),
        _ => "the recorder failed".to_owned(),
    };
    format!("{how}; the program goes on, and the log holds all up to its last second")
}
