//! The tracer's process: what launch and attach have in common.
//!
//! It is a child of the process that the user started, in a session of its own: the terminal's signals
//! do not reach it, and it can stay behind.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::panic::{self, AssertUnwindSafe};

use crate::error::Error;
use crate::front::ToFront;
use crate::proc;
use crate::sys::spawn;
use crate::tracer::{self, Tracer};

/// What the tracer's process is called.
pub const TRACER_NAME: &str = "mt-tracer";

/// Whether recording is possible here at all.
///
/// # Errors
/// [`Error::KernelTooOld`] and [`Error::NoProc`].
pub fn check_machine() -> Result<(), Error> {
    if let Some(kernel) = too_old() {
        return Err(Error::KernelTooOld(kernel));
    }
    if !proc::is_ours() {
        return Err(Error::NoProc);
    }
    Ok(())
}

/// The running kernel, if it is older than 5.3, which has no PTRACE_GET_SYSCALL_INFO.
fn too_old() -> Option<String> {
    let uname = nix::sys::utsname::uname().ok()?;
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse::<u32>().ok();
    let version = (next()?, next()?);
    (version < (5, 3)).then_some(release)
}

/// Makes this process the tracer's, begins by `begin`, and serves the target until it needs nobody.
/// Keeps the descriptors in `keep` and the front's. `bound`: the target cannot live without a tracer.
pub fn trace(
    mut front: ToFront,
    keep: &[RawFd],
    bound: bool,
    begin: impl FnOnce(&mut ToFront) -> Result<Tracer, String>,
) -> ! {
    let keep = [keep, &[front.as_raw_fd()]].concat();
    if let Err(error) = spawn::become_background(&keep) {
        front.refused(&format!("the recorder could not start: {error}"));
        spawn::exit_now(1);
    }
    take_other_name();
    spawn::raise_limits();
    let work = || match begin(&mut front) {
        Ok(mut tracer) => tracer.run().map_err(|e| e.to_string()),
        Err(cause) => {
            front.refused(&cause);
            Ok(())
        }
    };
    // A fault of ours must not end the target.
    let failure = match panic::catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => spawn::exit_now(0),
        Ok(Err(cause)) => cause,
        Err(_) => "an internal error".into(),
    };
    front.note(&format!(
        "the recorder failed ({failure}); the program goes on, and the log ends here"
    ));
    drop(front);
    if bound {
        tracer::pass_through();
    }
    // The kernel lets go of all others.
    spawn::exit_now(1)
}

/// Who kills everything that is called maptrail (`pkill maptrail`, `pkill -f`) means the process that was
/// started. If that dies this one follows, in order; killed with it, it would leave the target in the lurch.
fn take_other_name() {
    // Where a name cannot be changed it stays.
    let _ = fs::write("/proc/self/comm", TRACER_NAME);
    let Some(range) = proc::arguments_of_this_process() else {
        return;
    };
    let mut line = vec![0; usize::try_from(range.len()).unwrap_or(0)];
    for (to, from) in line.iter_mut().zip(TRACER_NAME.bytes()) {
        *to = from;
    }
    if let Ok(memory) = File::options().write(true).open("/proc/self/mem") {
        let _ = memory.write_all_at(&line, range.start.0);
    }
}
