//! Programs stepped through instruction by instruction: at each the stack must be what the calls and
//! returns that were executed make it.

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, Stdio};

use maptrail_recorder::unwind::{End, TargetMemory};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::libunwind::Libunwind;
use super::processor::LANDING;
use super::programs::{build, long};
use super::shadow::{Kind, Shadow};
use super::target::{Target, registers};

/// Where a stack was wrong, and how.
#[derive(Default)]
struct Wrong {
    times: u64,
    sample: String,
}

#[derive(Default)]
struct Result {
    steps: u64,
    /// How often libunwind was right when it was asked, and how often it was asked.
    libunwind: (u64, u64),
    /// Why others were wrong through no fault of the unwinder's, and how often.
    excused: BTreeMap<&'static str, u64>,
    wrong: BTreeMap<String, Wrong>,
}

struct Thread {
    shadow: Shadow,
    /// The signal that the next step delivers.
    signal: Option<Signal>,
    early: Vec<Early>,
}

/// libunwind is asked at one of so many steps: it takes long.
const LIBUNWIND_EVERY: u64 = 101;

/// A wrong stack for which there may be an excuse.
struct Early {
    step: u64,
    ours: Vec<u64>,
    /// Where the frame that was not left would return to in truth.
    caller: Option<u64>,
    /// How many frames were right.
    same: usize,
    wrong: (String, String),
}

/// The unwind information of `longjmp` and `setcontext` says where they go, as soon as they have begun to
/// put the registers there: the thread does arrive there, and not at the function's caller.
const JUMP: &str = "longjmp names the place that it is about to jump to";
const JUMP_STEPS: u64 = 40;
/// libgcc delivers an exception by overwriting what the frames of its own functions have saved with what
/// the catching frame needs, and then takes itself off the stack with `mov %rcx,%rsp; pop %rcx; jmp *%rcx`.
const THROW: &str = "libgcc overwrites its own frames when it delivers an exception";
const THROW_STEPS: u64 = 300;
/// What glibc's `swapcontext` says of its frame holds for the stack that it leaves.
const SWITCH: &str = "swapcontext has the other stack's pointer and not yet its return address";
/// musl's `clone` tells nobody that its child has no caller.
const START: &str = "a thread's first instructions are not known to be its first";
/// Where a function has realigned its stack, the last two instructions, `lea -N(%r10),%rsp` and `ret`, have
/// `rbp` restored already, and the unwind information goes on saying that it is in the frame. A caller that
/// needs `rbp` is not found, by anybody.
const FORGOTTEN: &str = "gcc does not say that rbp is restored at the end of a realigned function";

fn step_through(program: &mut Command) -> Result {
    let child = start(program);
    let mut target = Target::new(child);
    target.look();
    let mut threads = HashMap::new();
    let regs = registers(child).unwrap();
    let shadow = Shadow::new(&regs, true, &mut target.memory);
    threads.insert(child, Thread::new(shadow));
    let mut result = Result::default();
    let mut libunwind = Libunwind::new();
    ptrace::step(child, None).unwrap();
    while !threads.is_empty() {
        let any = Pid::from_raw(-1);
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let status = waitpid(any, Some(flags)).unwrap();
        let tid = status.pid().unwrap();
        let signal = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                for early in threads.remove(&tid).into_iter().flat_map(|t| t.early) {
                    result.note(early.wrong);
                }
                continue;
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => None,
        };
        let Some(regs) = registers(tid) else { continue };
        let thread = threads
            .entry(tid)
            .or_insert_with(|| Thread::new(Shadow::new(&regs, true, &mut target.memory)));
        let stepped = matches!(status, WaitStatus::Stopped(_, Signal::SIGTRAP));
        if stepped {
            if thread.shadow.next() == Kind::Syscall && target.look() {
                libunwind = Libunwind::new();
            }
            if thread.signal.take().is_some() {
                thread.shadow.signalled(&regs, &mut target.memory);
            } else {
                thread.shadow.stepped(&regs, &mut target.memory);
            }
            let (truth, rooted) = result.compare(&mut target, thread, &regs);
            if rooted && result.steps % LIBUNWIND_EVERY == 0 {
                result.libunwind.0 += u64::from(libunwind.stack(tid).0 == truth);
                result.libunwind.1 += 1;
            }
        }
        thread.signal = signal;
        let _ = ptrace::step(tid, signal);
    }
    result
}

fn start(command: &mut Command) -> Pid {
    // A shell that stops itself and then becomes the program.
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg("kill -STOP $$; exec \"$0\" \"$@\"");
    shell.arg(command.get_program()).args(command.get_args());
    #[expect(
        clippy::zombie_processes,
        reason = "whoever steps it waits for its end"
    )]
    let child = shell.stdout(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    let options = ptrace::Options::PTRACE_O_TRACEEXEC
        | ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).unwrap();
    nix::sys::signal::kill(pid, Signal::SIGCONT).unwrap();
    loop {
        let status = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        match status {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => return pid,
            WaitStatus::Stopped(_, signal) => ptrace::cont(pid, signal).unwrap(),
            WaitStatus::PtraceEvent(..) => ptrace::cont(pid, None).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

impl Thread {
    fn new(shadow: Shadow) -> Thread {
        Thread {
            shadow,
            signal: None,
            early: Vec::new(),
        }
    }
}

impl Result {
    /// Counts what we say of a thread that was just stepped. Returns its true stack, and whether that is all of
    /// it.
    fn compare(
        &mut self,
        target: &mut Target,
        thread: &mut Thread,
        regs: &libc::user_regs_struct,
    ) -> (Vec<u64>, bool) {
        self.steps += 1;
        let (outer, rooted) = thread.shadow.pcs(&mut target.memory);
        let mut truth = vec![regs.rip];
        truth.extend(outer);
        let is_truth = |ours: &[u64]| {
            if rooted {
                ours == truth
            } else {
                ours.starts_with(&truth)
            }
        };
        let lands = at_code(target, regs.rip, &LANDING);
        for early in std::mem::take(&mut thread.early) {
            let age = self.steps - early.step;
            if lands && early.same > 1 {
                self.excuse(THROW);
            } else if age <= JUMP_STEPS && is_truth(&early.ours[1..]) {
                self.excuse(JUMP);
            } else if age > THROW_STEPS || early.caller == Some(regs.rip) {
                self.note(early.wrong);
            } else {
                thread.early.push(early);
            }
        }
        let (ours, end) = target.stack(regs, true);
        if is_truth(&ours) && (!rooted || end == End::Root) {
            return (truth, rooted);
        }
        let excuse = if at_code(target, regs.rip, &[0x49, 0x8d, 0x62, 0xf8, 0xc3]) {
            Some(FORGOTTEN)
        } else if lands {
            Some(THROW)
        } else if thread.shadow.is_switching() {
            Some(SWITCH)
        } else if rooted && truth.len() == 1 && ours == truth {
            Some(START)
        } else {
            None
        };
        if let Some(excuse) = excuse {
            self.excuse(excuse);
            return (truth, rooted);
        }
        // The frame that could not be left.
        let same = truth.iter().zip(&ours).take_while(|(a, b)| a == b).count();
        let at = target.place(truth[same.max(1) - 1]);
        let show = |pcs: &[u64]| pcs.iter().map(|&pc| target.place(pc)).collect::<Vec<_>>();
        let sample = format!(
            "frame {same}, {end:?}, sp {:#x}\n  truth {:?}{}\n  ours  {:?}",
            regs.rsp,
            show(&truth),
            if rooted { "" } else { " ..." },
            show(&ours)
        );
        thread.early.push(Early {
            step: self.steps,
            ours,
            caller: truth.get(same).copied(),
            same,
            wrong: (at, sample),
        });
        (truth, rooted)
    }

    fn excuse(&mut self, why: &'static str) {
        *self.excused.entry(why).or_default() += 1;
    }

    fn note(&mut self, (at, sample): (String, String)) {
        let wrong = self.wrong.entry(at).or_default();
        wrong.times += 1;
        if wrong.times == 1 {
            wrong.sample = sample;
        }
    }

    fn assert_right(&self) {
        assert!(self.steps > 10_000);
        assert!(self.wrong.is_empty(), "see above");
    }

    fn print(&self, name: &str) {
        let wrong: u64 = self.wrong.values().map(|w| w.times).sum();
        println!(
            "{name}: {} steps, {wrong} wrong at {} places",
            self.steps,
            self.wrong.len()
        );
        let (right, asked) = self.libunwind;
        println!("    libunwind was right {right} of {asked} times");
        for (why, times) in &self.excused {
            println!("    {times}: {why}");
        }
        for (place, wrong) in &self.wrong {
            println!("{place}: {} times, {}", wrong.times, wrong.sample);
        }
    }
}

/// Whether `pc` is at one of the instructions of `code`, of which each starts at most four bytes after the
/// one before.
fn at_code(target: &mut Target, pc: u64, code: &[u8]) -> bool {
    let mut bytes = vec![0; code.len()];
    (0..5).any(|back| {
        let read = target.memory.read(pc - back, &mut bytes);
        read == bytes.len() && bytes == code
    })
}

fn functions(compiler: &str, name: &str, flags: &[&str]) {
    let program = build(compiler, "functions.c", name, flags);
    let result = step_through(&mut Command::new(program));
    result.print(name);
    result.assert_right();
}

#[test]
fn o2() {
    functions("gcc", "functions-O2", &["-O2", "-Wl,-z,lazy"]);
}
#[test]
fn o0() {
    if !long() {
        eprintln!("SKIPPED: this is a part of the long form, MAPTRAIL_LONG=1");
        return;
    }
    functions("gcc", "functions-O0", &["-O0"]);
}
#[test]
fn avx() {
    functions(
        "gcc",
        "functions-avx",
        &["-O3", "-mavx2", "-mstackrealign", "-static"],
    );
}
#[test]
fn musl() {
    functions("musl-gcc", "functions-musl", &["-O2", "-static"]);
}
#[test]
fn exceptions() {
    // The dynamic linker alone would take two million steps to link libstdc++.
    let flags = ["-O2", "-static-libstdc++", "-static-libgcc"];
    let program = build("g++", "throws.cc", "throws-O2", &flags);
    let result = step_through(&mut Command::new(program));
    result.print("throws-O2");
    result.assert_right();
}
