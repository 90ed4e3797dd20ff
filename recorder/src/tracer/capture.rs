//! Taking up threads that run already, without harm.
//!
//! A thread that is traced goes on as it did: under `syscall` it must stop once before it stops at its
//! calls. So it is interrupted, but only where that breaks nothing off that cannot be made good (see
//! [`interruption`]). A thread is looked at, left alone, and looked at again: one that slept all the
//! while is not about to begin a transfer, and one that was seen in transfers is waited for with more
//! patience. It is not even traced before that moment, since signals that it ignores would wake it. Those
//! that make processes come last, when all others are taken up or have had their time: for a traced one the
//! kernel does not drop a SIGCHLD that is ignored, and it may wake any other thread. What cannot be taken
//! up yet is tried again as long as the window is open.

use std::io::{self, ErrorKind};

use maptrail_tracelog::record::WindowEnd;
use maptrail_tracelog::types::{Pid, Tid};
use rustc_hash::FxHashMap;

use super::interruption::{self, Harm};
use super::opening::OPENING_TICK;
use super::window::Window;
use super::{Stop, StopError, Stopped, Thread, Tracer};
use crate::mechanism;
use crate::proc::{self, Doing, Turns};
use crate::sys::ptrace::{self, Tracing};
use crate::sys::timer;
use crate::sys::wait::{self, Event, Stops};
use crate::target::why_refused;

/// So much CPU time a thread must have used without sleeping once before it is interrupted on the run,
/// nanoseconds: one that is copying a transfer's data would have slept.
const COMPUTED: u64 = 5_000_000;
/// The same for one that was seen in a transfer.
const COMPUTED_AFTER_TRANSFER: u64 = 20_000_000;
/// In so many looks in a row a thread must have slept on.
const SLEPT: u64 = 2;
/// The same for one that was seen in a transfer.
const SLEPT_AFTER_TRANSFER: u64 = 8;
/// The same for one that sleeps in a call of those that make processes.
const SLEPT_AS_MAKER: u64 = 10;
/// After so many looks a thread that wakes between any two of them is interrupted in its sleep all the
/// same, unless it was seen in a transfer.
const RESTLESS: u32 = 10;
/// So often in sum the kernel's refusal to have a thread traced is not taken for its last word.
const REFUSALS: u32 = 5;
/// How long those that are taken up stand while others are looked at, nanoseconds.
const UNSERVED_NS: u64 = 200_000;
/// How long an interrupted thread whose call must be made good is waited for at once, nanoseconds.
const AT_ONCE_NS: u64 = 1_000_000;

/// Threads that are to be traced, and do not stop at their calls yet.
#[derive(Default)]
pub struct Capture {
    waiting: FxHashMap<Tid, Waiting>,
}

/// What was seen of one of them.
#[derive(Default)]
struct Waiting {
    name: String,
    looks: u32,
    /// It has been running since a look at which it had slept so often and used so much CPU time.
    running: Option<Sleeps>,
    /// It was seen in a call of those that make processes, or to have made one.
    maker: bool,
    /// It was seen in a call that must not be broken off: which.
    transfer: Option<u64>,
    /// It slept in this call, and had so many turns, at the last look.
    asleep: Option<(u64, Option<Turns>)>,
    /// Looks in a row at which it slept, without having woken in between.
    slept: u64,
    interrupted: bool,
    /// How often the kernel refused that it be traced.
    refusals: u32,
}

/// How often a thread slept so far, and how much CPU time it used.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sleeps {
    times: Option<u64>,
    ran_ns: u64,
}

/// What to do with a thread after a look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Interrupt(Harm),
    Wait,
    /// It may not be traced, nor looked at.
    Refused,
}

impl Waiting {
    /// `sleeps` is asked of a thread that runs, `harm` of one that sleeps.
    fn look(
        &mut self,
        doing: Doing,
        turns: Option<Turns>,
        sleeps: impl FnOnce() -> Option<u64>,
        harm: impl FnOnce() -> Harm,
    ) -> Verdict {
        self.looks = self.looks.saturating_add(1);
        if doing == Doing::Nothing {
            // Stopped by job control, or waiting for a page: there is no call to break off. But a maker is
            // known by its calls only.
            return match self.looks > RESTLESS {
                true => Verdict::Interrupt(Harm::None),
                false => Verdict::Wait,
            };
        }
        let Doing::Call { number, .. } = doing else {
            self.asleep = None;
            let now = Sleeps {
                times: sleeps(),
                ran_ns: turns.map_or(0, |turns| turns.ran_ns),
            };
            let since = *self.running.get_or_insert(now);
            if since.times != now.times {
                self.running = Some(now);
                return Verdict::Wait;
            }
            let computed = now.ran_ns.saturating_sub(since.ran_ns);
            return match computed >= self.patience(COMPUTED, COMPUTED_AFTER_TRANSFER) {
                true => Verdict::Interrupt(Harm::None),
                false => Verdict::Wait,
            };
        };
        self.running = None;
        let sleeps_on = self.asleep == Some((number, turns));
        self.slept = if sleeps_on {
            self.slept.saturating_add(1)
        } else {
            1
        };
        self.asleep = Some((number, turns));
        let harm = harm();
        if harm == Harm::Perhaps {
            self.transfer = Some(number);
            return Verdict::Wait;
        }
        let restless = self.looks > RESTLESS && self.transfer.is_none();
        self.maker |= interruption::MAKERS.contains(&number);
        let usual = match self.maker {
            true => SLEPT_AS_MAKER,
            false => SLEPT,
        };
        match restless || self.slept >= self.patience(usual, SLEPT_AFTER_TRANSFER) {
            true => Verdict::Interrupt(harm),
            false => Verdict::Wait,
        }
    }

    fn patience(&self, usual: u64, after_transfer: u64) -> u64 {
        match self.transfer {
            None => usual,
            Some(_) => after_transfer,
        }
    }
}

impl Capture {
    /// A thread of this name is to be taken up.
    pub fn begin(&mut self, tid: Tid, name: String) {
        self.waiting.entry(tid).or_insert_with(|| Waiting {
            name,
            ..Waiting::default()
        });
    }

    /// A thread stopped, or is gone. True if it was waited for.
    pub fn end(&mut self, tid: Tid) -> bool {
        self.waiting.remove(&tid).is_some()
    }

    fn look(&mut self, tid: Tid) -> Verdict {
        let waiting = self.waiting.get_mut(&tid).filter(|w| !w.interrupted);
        let Some(waiting) = waiting else {
            return Verdict::Wait;
        };
        let doing = match proc::doing(tid) {
            Ok(doing) => doing,
            Err(error) => {
                if proc::is_dead(tid) {
                    self.waiting.remove(&tid);
                } else if error.kind() == ErrorKind::PermissionDenied {
                    return Verdict::Refused;
                }
                return Verdict::Wait;
            }
        };
        let harm = || match doing {
            Doing::Call { number, args } => {
                interruption::harm(number, &args, |fd| proc::descriptor(tid, fd))
            }
            Doing::Runs | Doing::Nothing => Harm::None,
        };
        let verdict = waiting.look(doing, proc::turns(tid), || proc::sleeps(tid), harm);
        if verdict != Verdict::Wait && !waiting.maker {
            waiting.maker = proc::has_children(tid);
        }
        verdict
    }

    /// Whether it may be traced next time, though it was refused: a thread that exec puts in the place of
    /// a dead one has its id.
    fn is_refused_by_chance(&mut self, tid: Tid) -> bool {
        let waiting = self.waiting.get_mut(&tid);
        waiting.is_some_and(|waiting| {
            waiting.refusals += 1;
            waiting.refusals < REFUSALS
        })
    }

    /// Whether it is waited for.
    #[must_use]
    pub fn awaits(&self, tid: Tid) -> bool {
        self.waiting.contains_key(&tid)
    }

    /// Whether a thread was interrupted and has not stopped yet: its call is not made good.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.waiting.values().any(|waiting| waiting.interrupted)
    }

    /// Whether a thread was seen to make processes, and others were not.
    fn is_maker_among_others(&self, tid: Tid) -> bool {
        let maker = self.waiting.get(&tid).is_some_and(|waiting| waiting.maker);
        maker && self.waiting.values().any(|waiting| !waiting.maker)
    }

    /// Nobody is waited for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Those that are waited for, and the call that kept us from interrupting each.
    pub fn left(&self) -> impl Iterator<Item = (Tid, Option<u64>)> {
        self.waiting.iter().map(|(tid, w)| (*tid, w.transfer))
    }
}

impl Tracer {
    /// Looks at all threads that are not taken up yet, and interrupts those that may be. One whose call
    /// must be made good is served at once: if this process died between the interrupt and the repair, it
    /// would see EINTR.
    pub(super) fn capture(&mut self) -> io::Result<()> {
        let tids: Vec<Tid> = self.capture.waiting.keys().copied().collect();
        let mut served = timer::monotonic_ns();
        for tid in tids {
            // On a busy machine this may take long, and nobody is to stand until all are looked at.
            self.sign_of_life();
            if timer::monotonic_ns() - served > UNSERVED_NS {
                self.serve_waiting()?;
                served = timer::monotonic_ns();
            }
            if !self.is_recording() {
                return Ok(());
            }
            let harm = match self.capture.look(tid) {
                Verdict::Interrupt(_) if self.puts_off(tid) => continue,
                Verdict::Interrupt(harm) => harm,
                Verdict::Wait => continue,
                Verdict::Refused => {
                    self.not_ours(tid, &io::Error::from_raw_os_error(libc::EPERM));
                    continue;
                }
            };
            if self.interrupt(tid) && harm == Harm::Undone {
                self.serve_at_once(tid)?;
            }
        }
        if let Window::Opening(opening) = &mut self.window {
            opening.looked();
        }
        Ok(())
    }

    /// While the window opens: whether others are to be taken up before this thread, or it is not known
    /// yet which make processes.
    fn puts_off(&self, tid: Tid) -> bool {
        match &self.window {
            Window::Opening(opening) => {
                opening.still_watches() || self.capture.is_maker_among_others(tid)
            }
            _ => false,
        }
    }

    /// The kernel does not let us trace a thread.
    fn not_ours(&mut self, tid: Tid, error: &io::Error) {
        self.capture.end(tid);
        self.refused.insert(tid);
        if self.threads.is_empty() && self.is_opening() {
            self.refuse(&why_refused(tid, error));
        }
    }

    /// Begins to trace a thread, and interrupts it. False if it will not stop for that.
    fn interrupt(&mut self, tid: Tid) -> bool {
        let Some(attached) = &self.task.attached else {
            return false;
        };
        let tracing = mechanism::tracing(self.task.mechanism, self.task.follow_forks);
        if let Err(error) = self.seize(tid, tracing) {
            if error.kind() == ErrorKind::Interrupted || self.capture.is_refused_by_chance(tid) {
                // Its process is in exec, or was just now. If it is still there it is looked at again.
                return false;
            }
            self.capture.end(tid);
            // Dead, or made by one that is traced: its first stop tells of it.
            if proc::is_dead(tid) || proc::tracer_of(tid) == Some(Pid(std::process::id())) {
                return false;
            }
            self.not_ours(tid, &error);
            return false;
        }
        if self.threads.is_empty() && !attached.target.is_same() {
            // Another process, which has its pid by now: it is let go where it stops.
            self.capture.end(tid);
            self.threads.insert(tid, Thread::new(self.task.root));
            self.close_window(WindowEnd::ProgramEnded);
            return false;
        }
        // At once: it was looked at, and the longer that is ago, the more may have changed. A refusal
        // means that it is gone, which is told of by itself.
        let outcome = ptrace::interrupt(tid);
        let mut thread = Thread::new(self.task.root);
        thread.space = self.root_space();
        if let Some(space) = thread.space.and_then(|id| self.spaces.get_mut(&id)) {
            space.threads += 1;
        }
        if let Some(waiting) = self.capture.waiting.get_mut(&tid) {
            waiting.interrupted = true;
            thread.name = std::mem::take(&mut waiting.name);
        }
        self.threads.insert(tid, thread);
        outcome.is_ok()
    }

    /// Seizes a thread; an exec of its process is not waited for.
    fn seize(&self, tid: Tid, tracing: Tracing) -> io::Result<()> {
        if self.is_opening() {
            return ptrace::seize(tid, tracing);
        }
        // A tick ends the request. A failure to set it means that a later one does.
        let _ = timer::set(OPENING_TICK);
        let outcome = ptrace::seize(tid, tracing);
        let _ = timer::set(self.tick_length());
        outcome
    }

    /// Serves the stop of one thread as soon as it comes.
    fn serve_at_once(&mut self, tid: Tid) -> io::Result<()> {
        let begin = timer::monotonic_ns();
        loop {
            match wait::now(tid, Stops::Peeked)? {
                Event::Stopped(stopped, stop) => {
                    self.serve(stopped, stop);
                    // Not shown again only when it is resumed; and nobody is to wait for the others here.
                    self.go_all();
                    return Ok(());
                }
                Event::Ended(tid, status) => {
                    self.thread_ended(tid, status);
                    return Ok(());
                }
                _ if timer::monotonic_ns() - begin > AT_ONCE_NS => return Ok(()),
                _ => std::thread::yield_now(),
            }
        }
    }

    /// A thread stopped for our interrupt, or for something else: from here on it stops at its calls.
    pub(super) fn captured(&mut self, stopped: &Stopped, stop: Stop) -> Result<(), StopError> {
        let tid = stopped.tid();
        let interrupted = self
            .capture
            .waiting
            .get(&tid)
            .is_some_and(|waiting| waiting.interrupted);
        if self.capture.end(tid) {
            self.recorded_again(tid);
        }
        // Job control breaks calls off in every program.
        if interrupted && stop != Stop::Group {
            interruption::undo(stopped)?;
            // At the stop of a signal its handler is about to run, and a short count is for that to see.
            if stop == Stop::Trap {
                self.interrupted_in_transfer(stopped)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_call(number: u64) -> Doing {
        Doing::Call {
            number,
            args: [0; 6],
        }
    }

    fn turns(turns: u64) -> Option<Turns> {
        Some(Turns { ran_ns: 0, turns })
    }

    fn look(waiting: &mut Waiting, number: u64, turn: u64, harm: Harm) -> Verdict {
        waiting.look(in_call(number), turns(turn), || None, || harm)
    }

    fn run(waiting: &mut Waiting, slept: u64, ran_ns: u64) -> Verdict {
        let turns = Some(Turns { ran_ns, turns: 1 });
        waiting.look(Doing::Runs, turns, || Some(slept), || Harm::None)
    }

    #[test]
    fn a_thread_that_sleeps_on_is_interrupted() {
        let mut waiting = Waiting::default();
        assert_eq!(look(&mut waiting, 232, 5, Harm::Undone), Verdict::Wait);
        assert_eq!(
            look(&mut waiting, 232, 5, Harm::Undone),
            Verdict::Interrupt(Harm::Undone)
        );
    }

    #[test]
    fn a_thread_in_a_transfer_never_is() {
        let mut waiting = Waiting::default();
        for _ in 0..1000 {
            assert_eq!(look(&mut waiting, 1, 1, Harm::Perhaps), Verdict::Wait);
        }
    }

    #[test]
    fn a_thread_between_transfers_is_waited_for_with_patience() {
        let mut waiting = Waiting::default();
        look(&mut waiting, 1, 0, Harm::Perhaps);
        for turn in 1..1000 {
            assert_eq!(look(&mut waiting, 35, turn, Harm::None), Verdict::Wait);
        }
    }

    #[test]
    fn a_thread_that_computes_is_interrupted_and_one_that_waits_for_a_processor_is_not() {
        let mut waiting = Waiting::default();
        assert_eq!(run(&mut waiting, 7, 0), Verdict::Wait);
        for _ in 0..1000 {
            assert_eq!(run(&mut waiting, 7, COMPUTED / 2), Verdict::Wait);
        }
        assert_eq!(
            run(&mut waiting, 7, COMPUTED),
            Verdict::Interrupt(Harm::None)
        );
        let mut copying = Waiting::default();
        for n in 0..1000 {
            assert_eq!(run(&mut copying, n, n * COMPUTED), Verdict::Wait);
        }
    }

    #[test]
    fn a_restless_thread_is_interrupted_in_the_end() {
        let mut waiting = Waiting::default();
        for turn in 0..RESTLESS {
            let verdict = look(&mut waiting, 35, turn.into(), Harm::None);
            assert_eq!(verdict, Verdict::Wait);
        }
        let verdict = look(&mut waiting, 35, RESTLESS.into(), Harm::None);
        assert_eq!(verdict, Verdict::Interrupt(Harm::None));
    }
}
