//! Which core the tracer runs on.
//!
//! A stop costs least when tracer and target share a core: nothing is woken over there, and no core
//! leaves its idle state. The scheduler does not keep them together by itself. When the tracer resumes
//! the target, their core is not idle (the tracer runs on it), so the kernel looks for one that is and
//! takes the target there, and it goes on like that if the tracer only runs after it. A core whose one
//! runnable thread is of class `SCHED_IDLE` counts as idle, though: so the tracer enters that class,
//! binds itself to the target's core, and the target stays. The target's own affinity and class are
//! never touched.
//!
//! In that class the tracer gets next to nothing of a core that somebody else wants, and the target
//! would wait for it. So it is done only while one thread makes nearly all stops, and many; a watchdog
//! of the usual class looks every few milliseconds whether they go on at the same pace, and takes the
//! tracer out if they do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use maptrail_tracelog::types::{Addr, Tid};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid as NixPid;

use crate::proc;
use crate::sys::ptrace::Stopped;
use crate::sys::{memory, sched, timer};
use crate::tracer::TICK;

/// Fewer stops in a tick are not worth it.
const MANY_STOPS: u64 = 500;
/// How often the watchdog looks.
const LOOK: Duration = Duration::from_millis(5);
/// With less than this part of the pace before, the tracer is taken out.
const SLOW: u64 = 4;
/// Whatever else wakes on the shared core for a moment makes the target leave it, so the target's core
/// is asked for again and again: once in so many stops where the target's memory tells it (1 µs) ...
const ASK_MEMORY: u64 = 8;
/// ... and where only `/proc` does (20 µs).
const ASK_PROC: u64 = 64;
/// Where a thread's rseq area has the number of the core that it runs on: `cpu_id` (rseq(2)).
const CPU_ID: u64 = 4;
/// Ticks of rest after the watchdog's first alarm; twice as many after each further one.
const FIRST_REST: u32 = 5;
const LONGEST_REST: u32 = 600;
/// After so many ticks without an alarm the rest is short again.
const GOOD_RUN: u32 = 20;
/// After so many ticks the pace must be better than before, by one part in so many.
const TRIAL: u32 = 3;
const BETTER_BY: u64 = 8;

/// Lets the tracer's thread follow the core of the thread that it serves.
pub struct Follower {
    /// `None` where it cannot be done: one core, or no right to leave the idle class again.
    able: Option<Able>,
    /// The thread served last, and how many of this tick's stops were of the same as the one before.
    last: Tid,
    same: u64,
    stops: u64,
}

struct Able {
    watch: Arc<Watch>,
    everywhere: CpuSet,
    /// The core that the tracer is bound to.
    bound: Option<usize>,
    /// The next stop is one to begin at.
    wanted: bool,
    /// The other threads of this process: the watchdog, the log's writer.
    others: Vec<NixPid>,
    /// Where the thread that is followed has the number of its core.
    place: Option<(Tid, Addr)>,
    /// Stops in the tick before it began.
    pace_before: u64,
    resting: u32,
    next_rest: u32,
    good_run: u32,
}

/// What tracer and watchdog share.
struct Watch {
    tracer: Tid,
    /// The tracer is in the idle class.
    idle: AtomicBool,
    stops: AtomicU64,
    /// Stops in a look that are slow.
    slow: AtomicU64,
}

impl Follower {
    /// Follows nobody yet. Belongs to the calling thread, the tracer's.
    #[must_use]
    pub fn new() -> Follower {
        Follower {
            able: Able::new(),
            ..Follower::nowhere()
        }
    }

    /// Follows nobody, ever.
    #[must_use]
    pub fn nowhere() -> Follower {
        Follower {
            able: None,
            last: Tid(0),
            same: 0,
            stops: 0,
        }
    }

    /// The tracer serves a stop.
    #[inline]
    pub fn served(&mut self, stopped: &Stopped) {
        let tid = stopped.tid();
        self.stops += 1;
        self.same += u64::from(tid == self.last);
        self.last = tid;
        if let Some(able) = &mut self.able {
            if able.bound.is_some() {
                let stops = able.watch.stops.fetch_add(1, Ordering::Relaxed);
                let every = if able.place.is_some() {
                    ASK_MEMORY
                } else {
                    ASK_PROC
                };
                if stops.is_multiple_of(every) {
                    able.go_where(tid);
                }
            } else if std::mem::take(&mut able.wanted) {
                able.follow(stopped);
            }
        }
    }

    /// A tick has passed: was it one to follow in?
    pub fn tick(&mut self) {
        let (stops, same) = (self.stops, self.same);
        (self.stops, self.same) = (0, 0);
        let Some(able) = &mut self.able else { return };
        let many = stops >= MANY_STOPS && same >= stops - stops / 10;
        if able.bound.is_some() {
            let better = stops > able.pace_before + able.pace_before / BETTER_BY;
            able.good_run += 1;
            if !able.watch.idle.load(Ordering::Relaxed) || (able.good_run == TRIAL && !better) {
                able.give_up();
            } else if many {
                able.expect(stops);
                if able.good_run >= GOOD_RUN {
                    able.next_rest = FIRST_REST;
                }
            } else {
                able.let_go();
            }
        } else if able.resting > 0 {
            able.resting -= 1;
        } else if many && proc::core_of(self.last) != sched::this_core() {
            // Where they share a core already, nothing can be won.
            able.expect(stops);
            able.pace_before = stops;
            able.wanted = true;
        }
    }

    /// Goes where the scheduler likes, for good.
    pub fn stop(&mut self) {
        if let Some(mut able) = self.able.take() {
            able.let_go();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Able {
    fn new() -> Option<Able> {
        let everywhere = sched_getaffinity(NixPid::from_raw(0)).ok()?;
        let cores = (0..CpuSet::count()).filter(|core| everywhere.is_set(*core).unwrap_or(false));
        if cores.take(2).count() < 2 || !sched::is_usual() || !may_return() {
            return None;
        }
        let watch = Arc::new(Watch {
            tracer: sched::this_thread(),
            idle: AtomicBool::new(false),
            stops: AtomicU64::new(0),
            slow: AtomicU64::new(0),
        });
        Some(Able {
            watch,
            everywhere,
            bound: None,
            wanted: false,
            place: None,
            others: Vec::new(),
            pace_before: 0,
            resting: 0,
            next_rest: FIRST_REST,
            good_run: 0,
        })
    }

    fn expect(&self, stops_in_a_tick: u64) {
        let looks = (TICK.as_millis() / LOOK.as_millis()) as u64;
        let slow = stops_in_a_tick / looks / SLOW;
        self.watch.slow.store(slow.max(1), Ordering::Relaxed);
    }

    fn follow(&mut self, stopped: &Stopped) {
        let tid = stopped.tid();
        self.place = stopped
            .rseq_area()
            .map(|area| (tid, Addr(area.0.wrapping_add(CPU_ID))));
        let watch = Arc::clone(&self.watch);
        watch.idle.store(true, Ordering::Relaxed);
        // The watchdog first: without it the tracer must not be in that class.
        let dog = thread::Builder::new().name("maptrail-watch".into());
        if dog.spawn(move || watch.look_on()).is_err() {
            self.watch.idle.store(false, Ordering::Relaxed);
            return;
        }
        self.good_run = 0;
        self.others = proc::threads_of_this_process()
            .filter(|other| *other != self.watch.tracer)
            .map(as_nix)
            .collect();
        self.go_where(tid);
        if self.bound.is_none() || sched::set_idle(self.watch.tracer, true).is_err() {
            self.let_go();
        }
    }

    fn core_of(&self, tid: Tid) -> Option<usize> {
        match self.place {
            Some((followed, at)) if followed == tid => {
                memory::read_u32(tid, at.0).and_then(|core| usize::try_from(core).ok())
            }
            Some(_) => None,
            None => proc::core_of(tid),
        }
    }

    /// Binds the tracer to the core that the thread runs on, and its helpers to the other cores: what
    /// they do on the shared one would keep the tracer waiting.
    fn go_where(&mut self, tid: Tid) {
        let Some(core) = self.core_of(tid).filter(|core| self.bound != Some(*core)) else {
            return;
        };
        let (mut only, mut others) = (CpuSet::new(), self.everywhere);
        let bound = self.everywhere.is_set(core).unwrap_or(false)
            && only.set(core).is_ok()
            && sched_setaffinity(NixPid::from_raw(0), &only).is_ok();
        if bound {
            self.bound = Some(core);
            if others.unset(core).is_ok() {
                self.bind_others(&others);
            }
        }
    }

    fn bind_others(&self, cores: &CpuSet) {
        for other in &self.others {
            // One that has ended needs no core.
            let _ = sched_setaffinity(*other, cores);
        }
    }

    /// The watchdog has taken the tracer out of the idle class, or it was not worth while.
    fn give_up(&mut self) {
        self.resting = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
        self.let_go();
    }

    fn let_go(&mut self) {
        self.watch.leave();
        self.wanted = false;
        if self.bound.take().is_some() {
            // What was allowed before is allowed again, unless the cores themselves are gone.
            let _ = sched_setaffinity(NixPid::from_raw(0), &self.everywhere);
            self.bind_others(&self.everywhere);
        }
    }
}

fn as_nix(tid: Tid) -> NixPid {
    NixPid::from_raw(tid.0 as i32)
}

impl Watch {
    /// The watchdog's work, until the tracer leaves the idle class or must be taken out of it.
    fn look_on(&self) {
        timer::block_signals_in_this_thread();
        let mut before = self.stops.load(Ordering::Relaxed);
        let mut slow_before = false;
        while self.idle.load(Ordering::Relaxed) {
            thread::sleep(LOOK);
            let now = self.stops.load(Ordering::Relaxed);
            let slow = now - before < self.slow.load(Ordering::Relaxed);
            // One slow look may be a moment's work of somebody else.
            if slow && slow_before {
                self.leave();
            }
            (before, slow_before) = (now, slow);
        }
    }

    fn leave(&self) {
        if self.idle.swap(false, Ordering::Relaxed) {
            // That it may was tried out before it entered.
            let _ = sched::set_idle(self.tracer, false);
        }
    }
}

/// Whether a thread of ours that entered the idle class could leave it: tried out by one.
fn may_return() -> bool {
    let try_out = || {
        let me = sched::this_thread();
        sched::set_idle(me, true).is_ok() && sched::set_idle(me, false).is_ok()
    };
    thread::Builder::new()
        .spawn(try_out)
        .is_ok_and(|thread| thread.join().unwrap_or(false))
}
