//! What can go wrong before the target runs, in words that name the cause and the remedy.

use std::io;
use std::path::PathBuf;

use maptrail_tracelog::types::Pid;

/// Why a recording could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is not there.
    #[error("{0}: no such program; give its path, or check PATH")]
    NotFound(String),
    /// The program is there, and what must run it is not.
    #[error(
        "{0}: the program is there, but the interpreter that it asks for is not; \
         look at its #! line, or (readelf -l) at the loader that it names"
    )]
    NoInterpreter(String),
    /// The program is there and cannot be run.
    #[error("{program}: cannot be run: {source}")]
    NotExecutable {
        /// What was asked for.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The log cannot be made.
    #[error("{}: {source}{}", path.display(), output_remedy(source))]
    Output {
        /// Where it was to be.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// ptrace was refused.
    #[error("cannot trace {program}: {cause}")]
    Refused {
        /// What was to be traced.
        program: String,
        /// Cause and remedy.
        cause: String,
    },
    /// A running process cannot be attached to.
    #[error("cannot attach to process {pid}: {cause}")]
    Target {
        /// The process that was asked for.
        pid: Pid,
        /// Cause and remedy.
        cause: String,
    },
    /// The kernel cannot say what call a thread stands at.
    #[error("this kernel is Linux {0}, and recording needs 5.3 or later")]
    KernelTooOld(String),
    /// Nothing can be learnt of processes.
    #[error(
        "/proc is not mounted here, or belongs to another pid namespace: \
         mount it first (mount -t proc proc /proc), or make the namespace with it \
         (unshare --mount-proc)"
    )]
    NoProc,
    /// The kernel has no seccomp filters with RET_TRACE.
    #[error(
        "this kernel or container offers no seccomp filters that ask a tracer; \
         record with --mechanism syscall (slower: every system call stops)"
    )]
    NoSeccomp,
    /// Anything else that the kernel refused.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: names what was being done.
    pub(crate) fn system(doing: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| Error::System { doing, source }
    }

    /// The exit code that a shell would give.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::NotFound(_) | Error::NoInterpreter(_) => 127,
            Error::NotExecutable { .. } => 126,
            _ => 2,
        }
    }
}

fn output_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::IsADirectory => "; name a file in it",
        io::ErrorKind::AlreadyExists => {
            "; choose another name with -o, or overwrite it with --force"
        }
        io::ErrorKind::PermissionDenied => "; choose a place that you may write to, with -o",
        io::ErrorKind::NotFound => "; its directory does not exist",
        _ if error.raw_os_error() == Some(libc::ELOOP) => {
            "; it is a symbolic link, and a log is never written through one"
        }
        _ => "",
    }
}
