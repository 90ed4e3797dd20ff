//! Threads, processes and programs that come and go.

use maptrail_tracelog::calls::{Abi, X32_BIT};
use maptrail_tracelog::record::{Body, CheckpointReason, NotTraced, Origin, SpaceEnd};
use maptrail_tracelog::types::{Pid, SpaceId, ThreadIx, Tid};

use super::calls::CLONE_VM;
use super::state::{Changed, Newborn, Pending, Space, Staying, Thread};
use super::window::Window;
use super::{Stop, StopError, Stopped, Tracer};
use crate::mechanism;
use crate::patience::{PATIENCE, within};
use crate::proc;
use crate::sys::{memory, ptrace, timer};
use crate::tracer::TICK;
use crate::unwind::AddressMap;

/// How long a thread stays at its exit for the others of its process, nanoseconds.
const LONGEST_STAY_NS: u64 = 100_000_000;
/// `exit_group` on x86-64, i386 and x32. The other calls of these numbers do not end a thread.
const EXIT_GROUP: [u64; 3] = [231, 252, 0x4000_0000 | 231];
/// How long a newborn thread waits for its maker's stop, nanoseconds.
const ORPHAN_NS: u64 = 200_000_000;

impl Tracer {
    /// A thread that nobody told of: it was just made, and its stop came before its maker's. It is
    /// held until the maker's stop says what it is.
    pub(super) fn unknown(&mut self, stopped: Stopped, stop: Stop) -> Result<(), StopError> {
        if stop != Stop::Trap {
            return match stop {
                Stop::Signal(signal) => self.resume_with(stopped, signal),
                Stop::Group => stopped.listen(),
                _ => self.resume(stopped),
            };
        }
        // Nothing is known of a newborn that is about to exit.
        let _ = self.take(&stopped);
        if !self.is_recording() && self.task.attached.is_none() {
            // Ticks have ended with the log; this one may need them.
            let _ = timer::start(TICK);
        }
        let newborn = Newborn {
            since: timer::monotonic_ns(),
            batches: self.batches,
            stopped,
        };
        self.newborn.insert(newborn.stopped.tid(), newborn);
        Ok(())
    }

    /// Newborn threads whose maker was killed before its stop was served wait for nobody. Its stop may
    /// be in the batch, though, or have come while that was served.
    pub(super) fn adopt_orphans(&mut self) {
        let now = timer::monotonic_ns();
        let due: Vec<Tid> = self
            .newborn
            .iter()
            .filter(|(_, n)| {
                now.saturating_sub(n.since) > ORPHAN_NS && self.batches > n.batches + 1
            })
            .map(|(tid, _)| *tid)
            .collect();
        for tid in due {
            let Some(Newborn { stopped: born, .. }) = self.newborn.remove(&tid) else {
                continue;
            };
            let Some(pid) = proc::process_of(tid) else {
                // Dead; that is told by itself.
                continue;
            };
            let of_process = |thread: &Thread| thread.pid == pid;
            let fellow = self
                .threads
                .iter()
                .find(|(t, thread)| {
                    of_process(thread) || ptrace::same_space(**t, tid) == Some(true)
                })
                .map(|(t, _)| *t);
            match fellow {
                Some(fellow) => self.adopt(fellow, tid, pid, true),
                None => {
                    let recording =
                        self.is_recording() && !self.is_opening() && self.task.follow_forks;
                    let space = recording
                        .then(|| self.new_space(tid, pid, Origin::Attach, AddressMap::new()));
                    self.new_thread(tid, pid, space.flatten());
                }
            }
            self.first_stop(born);
        }
        self.rest_without_log();
    }

    /// When the log is written, ticks are for newborn threads only.
    pub(super) fn rest_without_log(&mut self) {
        // An attached program's threads are looked at until the last is let go.
        let needed = self.task.attached.is_some() || !self.newborn.is_empty();
        if self.journal.is_none() && self.written.is_none() && !needed {
            // A failure costs a wake-up now and then.
            let _ = timer::stop();
        }
    }

    /// A thread made another one, which is traced as well.
    pub(super) fn child(&mut self, stopped: Stopped) -> Result<(), StopError> {
        if !stopped.still_at_event()? {
            // Killed meanwhile, it stands at its exit, which will be told of, and its message is
            // another one. Its child, if there is one, is an orphan.
            return Ok(());
        }
        let maker = stopped.tid();
        let child = Tid(stopped.event_message()? as u32);
        // A child that is dead already was told of before.
        if !self.threads.contains_key(&child)
            && let Some(pid) = proc::process_of(child)
        {
            let shares = shares_space(&stopped)?;
            self.adopt(maker, child, pid, shares);
        }
        if let Some(Newborn { stopped: born, .. }) = self.newborn.remove(&child) {
            self.first_stop(born);
            self.rest_without_log();
        }
        self.resume(stopped)
    }

    fn first_stop(&mut self, born: Stopped) {
        let outcome = self.trap(born);
        self.served(outcome);
    }

    fn adopt(&mut self, maker: Tid, child: Tid, pid: Pid, shares: bool) {
        let Some(parent) = self.threads.get(&maker) else {
            return;
        };
        let (parent_pid, parent_space) = (parent.pid, parent.space);
        let birth_fix = match &parent.pending {
            // In memory that it shares, its maker's exit puts the word back.
            Some(Pending::Clone(Changed::Word { .. })) if shares => None,
            Some(Pending::Clone(changed)) => Some(*changed),
            _ => None,
        };
        let followed = pid == parent_pid || self.task.follow_forks;
        let recording = self.is_recording() && followed;
        if let Some(space) = parent_space.filter(|_| shares && !followed) {
            self.untraced_begins(child, space, NotTraced::OtherProcess);
        }
        let space = match parent_space.filter(|_| recording) {
            Some(space) if shares => {
                if let Some(s) = self.spaces.get_mut(&space) {
                    s.threads += 1;
                }
                Some(space)
            }
            Some(parent) => self.fork_space(child, pid, parent),
            None => None,
        };
        let let_go = !followed && !mechanism::binds(self.task.mechanism);
        let thread = self.new_thread(child, pid, space);
        thread.birth_fix = birth_fix;
        thread.let_go = let_go;
    }

    /// A copy of a space, whose first checkpoint is taken before the child's first instruction: it
    /// settles which calls of other threads the copy came after.
    fn fork_space(&mut self, child: Tid, pid: Pid, parent: SpaceId) -> Option<SpaceId> {
        let code = self.spaces.get(&parent)?.code.clone();
        self.new_space(child, pid, Origin::Fork { parent }, code)
    }

    pub(super) fn new_space(
        &mut self,
        tid: Tid,
        pid: Pid,
        origin: Origin,
        code: AddressMap,
    ) -> Option<SpaceId> {
        // The first thread's files in /proc stay good as long as the process does.
        let first = Tid(pid.0);
        let witness = match proc::is_dead(first) {
            true => tid,
            false => first,
        };
        let space = match Space::open(witness, code) {
            Ok(space) => space,
            Err(error) => {
                let name = proc::comm(tid);
                self.uncovered(format!(
                    "{name} (pid {pid}) is not recorded: its maps cannot be read ({error})"
                ));
                return None;
            }
        };
        let id = SpaceId(self.stats.spaces as u32);
        self.stats.spaces += 1;
        self.spaces.insert(id, space);
        self.record(Body::SpaceStart {
            space: id,
            pid,
            origin,
            start_brk: proc::start_brk(tid),
        });
        self.checkpoint(tid, id, CheckpointReason::Start, Vec::new(), 0);
        Some(id)
    }

    fn new_thread(&mut self, tid: Tid, pid: Pid, space: Option<SpaceId>) -> &mut Thread {
        // It was seen, perhaps, before its birth was told of.
        self.was_traced(tid);
        let thread = Thread::new(pid);
        self.threads.insert(tid, thread);
        if let Some(space) = space {
            self.begin_thread(tid, space);
        }
        self.threads.entry(tid).or_insert_with(|| Thread::new(pid))
    }

    /// A thread is recorded from here on.
    pub(super) fn begin_thread(&mut self, tid: Tid, space: SpaceId) {
        let Some(thread) = self.threads.get_mut(&tid) else {
            return;
        };
        thread.ix = ThreadIx(self.stats.threads as u32);
        thread.space = Some(space);
        if thread.name.is_empty() {
            thread.name = proc::comm(tid);
        }
        let start = Body::ThreadStart {
            thread: thread.ix,
            tid,
            pid: thread.pid,
            space,
            name: thread.name.clone(),
        };
        self.stats.threads += 1;
        self.record(start);
    }

    /// A stop at birth, at the end of a group-stop, or for nothing.
    pub(super) fn trap(&mut self, stopped: Stopped) -> Result<(), StopError> {
        let fix = self
            .threads
            .get_mut(&stopped.tid())
            .and_then(|t| t.birth_fix.take());
        if let Some(changed) = fix {
            changed.put_back(&stopped)?;
        }
        self.resume(stopped)
    }

    /// A process runs another program: its space is new, its other threads are gone, and the thread
    /// that called exec has taken the process's own id.
    pub(super) fn exec(&mut self, stopped: Stopped) -> Result<(), StopError> {
        if !stopped.still_at_event()? {
            // Killed meanwhile: see `child`.
            return Ok(());
        }
        let tid = stopped.tid();
        let pid = Pid(tid.0);
        let former = Tid(stopped.event_message()? as u32);
        let first = tid.0 == self.task.root.0 && matches!(self.window, Window::Waiting);
        let recorded = [former, tid]
            .into_iter()
            .filter_map(|t| self.threads.get(&t))
            .any(|t| t.space.is_some());
        let gone: Vec<Tid> = self
            .threads
            .iter()
            .filter(|(t, thread)| **t == former || thread.pid == pid)
            .map(|(t, _)| *t)
            .collect();
        if pid == self.task.root {
            self.unchosen_are_gone();
        }
        for t in gone {
            self.leave_space(t, SpaceEnd::Exec, Look::Gone);
            self.forget_thread(t, None);
        }
        if first {
            self.window = Window::Open;
        }
        let mut space = None;
        if self.is_recording() && (first || recorded) {
            let (path, argv) = proc::program(tid);
            let origin = Origin::Exec { path, argv };
            space = self.new_space(tid, pid, origin, AddressMap::new());
            self.warn_set_uid(tid);
        }
        self.new_thread(tid, pid, space);
        self.resume(stopped)
    }

    fn warn_set_uid(&mut self, tid: Tid) {
        if let Some(Some(what)) = within(PATIENCE, move || proc::without_its_privileges(tid)) {
            let name = proc::comm(tid);
            self.note(format!(
                "{name} (pid {tid}) is {what} and runs without its privileges: \
                 the kernel withholds them from a traced program (and from one under \
                 no_new_privs); record as root to keep them"
            ));
        }
    }

    /// A thread is about to exit. If it is the last of its space, this is the last moment at which
    /// the space can be looked at.
    pub(super) fn exiting(&mut self, stopped: Stopped) -> Result<(), StopError> {
        let tid = stopped.tid();
        let killed = stopped.event_message()? & 0x7f != 0;
        self.abandon_call(tid);
        self.settle_unseen(&stopped)?;
        self.ask_name(tid);
        let how = if killed {
            SpaceEnd::Killed
        } else {
            SpaceEnd::Exit
        };
        let whole_process = killed || EXIT_GROUP.contains(&stopped.regs()?.orig_rax);
        let of_root = self
            .threads
            .get(&tid)
            .is_some_and(|t| t.pid == self.task.root);
        if whole_process && of_root {
            self.unchosen_are_gone();
        }
        if whole_process && let Some(pid) = self.must_stay(tid) {
            // It stands at its exit already.
            let _ = self.take(&stopped);
            let since = timer::monotonic_ns();
            self.staying.insert(
                pid,
                Staying {
                    stopped,
                    how,
                    since,
                },
            );
            return Ok(());
        }
        self.leave_space(tid, how, Look::Last);
        self.resume(stopped)
    }

    /// When a process ends, SIGKILL wakes its other threads even from their exit stops, and the last
    /// of them may be gone before it could be looked at. So the one that ends the process stays until
    /// the others are gone. Returns the process, if this is the thread to stay.
    fn must_stay(&self, tid: Tid) -> Option<Pid> {
        let thread = self.threads.get(&tid)?;
        thread.space?;
        let others = self.has_others(thread.pid, tid);
        (others && !self.staying.contains_key(&thread.pid)).then_some(thread.pid)
    }

    fn has_others(&self, pid: Pid, but: Tid) -> bool {
        self.threads
            .iter()
            .any(|(tid, t)| t.pid == pid && *tid != but && !t.exiting)
    }

    /// Lets threads go that stayed for others which are gone. Others that SIGKILL woke while they were
    /// looked at are not seen to exit, and the death of a process's first thread is told last: so
    /// nobody stays for long.
    pub(super) fn let_stayers_go(&mut self) {
        let now = timer::monotonic_ns();
        let free: Vec<Pid> = self
            .staying
            .iter()
            .filter(|(pid, stayer)| {
                !self.has_others(**pid, stayer.stopped.tid())
                    || now.saturating_sub(stayer.since) > LONGEST_STAY_NS
            })
            .map(|(pid, _)| *pid)
            .collect();
        for pid in free {
            let Some(Staying { stopped, how, .. }) = self.staying.remove(&pid) else {
                continue;
            };
            let last = stopped.tid();
            let others: Vec<Tid> = self
                .threads
                .iter()
                .filter(|(tid, t)| t.pid == pid && **tid != last)
                .map(|(tid, _)| *tid)
                .collect();
            for tid in others {
                self.abandon_call(tid);
                self.settle_unseen_of_the_dead(tid);
                self.leave_space(tid, how, Look::Last);
            }
            self.leave_space(last, how, Look::Last);
            // Killed meanwhile, it is gone already.
            let _ = self.resume(stopped);
        }
    }

    /// The thread's memory call, if it is in one, will not come back.
    pub(super) fn abandon_call(&mut self, tid: Tid) {
        let Some(thread) = self.threads.get_mut(&tid) else {
            return;
        };
        let is_memory = |pending: &mut Pending| matches!(pending, Pending::Memory(_));
        if let Some(Pending::Memory(call)) = thread.pending.take_if(is_memory) {
            self.unfinished(tid, call);
        }
    }

    /// The thread uses its space no more.
    fn leave_space(&mut self, tid: Tid, how: SpaceEnd, look: Look) {
        let Some(thread) = self.threads.get_mut(&tid) else {
            return;
        };
        if std::mem::replace(&mut thread.exiting, true) {
            return;
        }
        let Some(id) = thread.space else {
            return;
        };
        let Some(space) = self.spaces.get_mut(&id) else {
            return;
        };
        space.threads = space.threads.saturating_sub(1);
        if space.threads > 0 {
            self.space_settled(id);
            return;
        }
        if look == Look::Last {
            self.last_look(tid, id);
        }
        self.end_space(id, how);
    }

    /// A space is gone.
    pub(super) fn end_space(&mut self, id: SpaceId, how: SpaceEnd) {
        self.define_bases(id);
        self.record(Body::SpaceEnd { space: id, how });
        self.spaces.remove(&id);
        self.space_gone(id);
    }

    /// A thread is dead and reaped.
    pub(super) fn thread_ended(&mut self, tid: Tid, status: i32) {
        self.newborn.remove(&tid);
        self.staying.retain(|_, stayer| stayer.stopped.tid() != tid);
        self.abandon_call(tid);
        self.settle_unseen_of_the_dead(tid);
        // Without an exit stop: its space, if it was the last in it, is gone unseen.
        self.leave_space(tid, SpaceEnd::Killed, Look::Gone);
        self.forget_thread(tid, Some(status));
        if tid.0 == self.task.root.0 {
            self.root_ended();
        }
    }

    fn forget_thread(&mut self, tid: Tid, status: Option<i32>) {
        self.capture.end(tid);
        self.untraced_ends(tid);
        self.drop_thread(tid, status);
    }

    /// A thread is gone, or let go.
    pub(super) fn drop_thread(&mut self, tid: Tid, status: Option<i32>) {
        let name = self.threads.get(&tid).map(|thread| thread.name.clone());
        self.end_thread(tid, status, name.unwrap_or_default());
        self.threads.remove(&tid);
    }

    /// Asks for a thread's name as long as it can tell: it may have changed it.
    pub(super) fn ask_name(&mut self, tid: Tid) {
        if let Some(thread) = self.threads.get_mut(&tid).filter(|t| t.space.is_some()) {
            let name = proc::comm(tid);
            if !name.is_empty() {
                thread.name = name;
            }
        }
    }
}

/// Whether a space whose last thread leaves it can be looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// For the last time.
    Last,
    /// It is gone already.
    Gone,
}

/// Whether the child that a thread has just made shares its space, by what it asked the kernel for.
fn shares_space(maker: &Stopped) -> Result<bool, StopError> {
    let i386 = maker.syscall_info()?.abi == Some(Abi::I386);
    let regs = maker.regs()?;
    let first = if i386 { regs.rbx } else { regs.rdi };
    let number = regs.orig_rax & !u64::from(X32_BIT);
    Ok(match (i386, number) {
        (true, 190) | (false, 58) => true, // vfork
        (true, 120) | (false, 56) => first & CLONE_VM != 0,
        // clone3: the flags come first.
        (_, 435) => memory::read_u64(maker.tid(), first).is_some_and(|f| f & CLONE_VM != 0),
        _ => false,
    })
}
