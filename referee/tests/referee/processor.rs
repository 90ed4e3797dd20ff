//! The last judge: the processor itself. A stopped thread is stepped until it has returned from some of its
//! frames, and where it returns to is where their callers are.

use std::thread::sleep;
use std::time::{Duration, Instant};

use maptrail_recorder::unwind::TargetMemory;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::shadow::{Kind, Shadow};
use super::target::{Target, registers};

/// libgcc's last instructions when it delivers an exception: `mov %rcx,%rsp; pop %rcx; jmp *%rcx`.
pub const LANDING: [u8; 6] = [0x48, 0x89, 0xcc, 0x59, 0xff, 0xe1];

const SYSCALL_LEN: u64 = 2;

/// What came of it.
#[derive(Debug, Default)]
pub struct Answer {
    /// Where the frames returned to, innermost first.
    pub returns: Vec<u64>,
    /// The thread then delivered an exception, and took frames off the stack.
    pub throws: bool,
}

/// Steps a thread that is stopped, the others of its process stay so, until it has returned `enough` times
/// or taken `steps` steps. `signal` is what the thread has been stopped for.
pub fn ask(
    target: &mut Target,
    tid: Pid,
    mut signal: Option<Signal>,
    enough: usize,
    steps: u32,
) -> Answer {
    let mut answer = Answer::default();
    let Some(regs) = registers(tid) else {
        return answer;
    };
    let mut shadow = Shadow::new(&regs, false, &mut target.memory);
    let mut rip = regs.rip;
    for _ in 0..steps {
        let mut code = [0; LANDING.len()];
        target.memory.read(rip, &mut code);
        if code == LANDING {
            answer.throws = true;
            break;
        }
        let kind = shadow.next();
        let outermost = shadow.is_empty();
        let Some(status) = step(tid, signal) else {
            break;
        };
        let Some(regs) = registers(tid) else { break };
        match status {
            WaitStatus::Stopped(_, Signal::SIGTRAP) if signal.take().is_some() => {
                shadow.signalled(&regs, &mut target.memory);
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                shadow.stepped(&regs, &mut target.memory);
                // A handler's trampoline goes back by a system call.
                let returns = match kind {
                    Kind::Return => true,
                    Kind::Syscall => regs.rip != rip + SYSCALL_LEN,
                    _ => false,
                };
                if returns && outermost {
                    answer.returns.push(target.canonical(regs.rip));
                    if answer.returns.len() == enough {
                        break;
                    }
                }
            }
            WaitStatus::Stopped(_, new) => signal = Some(new),
            _ => break,
        }
        rip = regs.rip;
    }
    if signal.is_some() {
        let _ = step(tid, signal);
    }
    answer
}

/// One step; `None` if the thread has ended, or waits in the kernel for what does not come.
fn step(tid: Pid, signal: Option<Signal>) -> Option<WaitStatus> {
    ptrace::step(tid, signal).ok()?;
    let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
    let deadline = Instant::now() + Duration::from_millis(100);
    let mut tries = 0;
    loop {
        let status = waitpid(tid, Some(flags)).ok()?;
        if status != WaitStatus::StillAlive {
            let ended = matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
            return (!ended).then_some(status);
        }
        tries += 1;
        if tries > 200 {
            sleep(Duration::from_micros(200));
        }
        if Instant::now() > deadline {
            ptrace::interrupt(tid).ok()?;
            waitpid(tid, Some(WaitPidFlag::__WALL)).ok()?;
            // The end of the call was a step, whose SIGTRAP must not be left to the program.
            if is_pending(tid, Signal::SIGTRAP) {
                ptrace::cont(tid, None).ok()?;
                waitpid(tid, Some(WaitPidFlag::__WALL)).ok()?;
            }
            return None;
        }
    }
}

fn is_pending(tid: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
    let pending = pending.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    pending.is_some_and(|set| set >> (signal as u64 - 1) & 1 != 0)
}
