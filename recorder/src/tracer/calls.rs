//! What happens at a memory call: its entry, its exit, and what must be asked of the kernel besides.

use maptrail_tracelog::calls::{Abi, Call, Effect};
use maptrail_tracelog::record::{Body, CallEvent, Look, LookCause, Mechanism, Outcome, Vma};
use maptrail_tracelog::types::{Addr, Perms, Range, SpaceId, StackId, Stamp, Tid};

use super::decode::{self, Wanted};
use super::interruption;
use super::state::{Changed, EVERYWHERE, MemoryCall, Pending, Unseen};
use super::timeouts::Wait;
use super::{MemoryOf, Tracer};
use crate::code::Source;
use crate::maps::clip;
use crate::mechanism::filter::{self, CLONE_UNTRACED, Watched};
use crate::proc;
use crate::sys::ptrace::{Position, Resume, StopError, Stopped};
use crate::sys::{memory, timer};
use crate::unwind::Regs;

const MAP_PRIVATE: u64 = 0x02;
const MAP_DROPPABLE: u64 = 0x08;
const MAP_TYPE: u64 = 0x0f;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_HUGETLB: u64 = 0x4_0000;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
pub(super) const MREMAP_FIXED: u64 = 2;
const PROT_EXEC: u64 = 4;
pub(super) const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_THREAD: u64 = 0x1_0000;
const PR_SET_VMA: u64 = 0x5356_4d41;
/// PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE.
const WANTS_TO_TRACE: [u64; 3] = [0, 16, 0x4206];
/// Number of `munmap` on x86-64.
pub(super) const MUNMAP: u64 = 11;

impl Tracer {
    /// A thread stands at the entry or the exit of a system call. One question is enough: the
    /// kernel's description of the call has the two registers that most stacks need.
    pub(super) fn at_call(&mut self, stopped: Stopped) -> Result<(), StopError> {
        let info = stopped.syscall_info()?;
        if info.filter_data.is_some_and(|data| data != filter::DATA) {
            // A filter of the program's own wants a tracer, and we are not that: without one the
            // kernel refuses the call (seccomp(2), SECCOMP_RET_TRACE).
            stopped.answer(-i64::from(libc::ENOSYS))?;
            return self.resume(stopped);
        }
        match (info.abi, info.position) {
            (_, Position::Entry { .. }) if self.is_free(stopped.tid()) => {
                self.let_go_at_entry(stopped)
            }
            (Some(abi), Position::Entry { number, args }) => {
                let entry = Entry {
                    abi,
                    number,
                    args,
                    regs: Regs::pointers(info.rsp, info.rip),
                };
                self.entry(stopped, &entry)
            }
            (Some(_), Position::Exit(value)) => self.exit(stopped, value),
            // Killed meanwhile, it has come to its exit stop, which will be told of.
            (_, Position::None) => Ok(()),
            (None, _) => self.resume(stopped),
        }
    }

    fn entry(&mut self, stopped: Stopped, entry: &Entry) -> Result<(), StopError> {
        let tid = stopped.tid();
        let Some(thread) = self.threads.get_mut(&tid) else {
            return self.resume(stopped);
        };
        thread.undone = None;
        let before = thread.wait.take();
        let now = timer::monotonic_ns;
        thread.wait = Wait::entered(before, entry.abi, entry.number, &entry.args, now);
        thread
            .transfers
            .entered(entry.abi, entry.number, &entry.args);
        // A call that never showed its exit cannot be completed any more.
        if let Some(Pending::Memory(call)) = thread.pending.take() {
            self.unfinished(tid, call);
        }
        match decode::decode(tid, entry.abi, entry.number, entry.args) {
            Some(wanted) => self.memory_entry(stopped, entry, wanted),
            None => match Watched::from_number(entry.abi, entry.number) {
                Some(watched) => self.watched_entry(stopped, entry.abi, watched, entry.args[0]),
                None => self.resume(stopped),
            },
        }
    }

    fn memory_entry(
        &mut self,
        stopped: Stopped,
        entry: &Entry,
        wanted: Wanted,
    ) -> Result<(), StopError> {
        let tid = stopped.tid();
        let space = self.threads.get(&tid).and_then(|t| t.space);
        let Some(space) = space.filter(|_| self.is_recording()) else {
            return self.early_call(stopped);
        };
        let Some(stopped) = self.hold_if_closing(stopped, space) else {
            return Ok(());
        };
        let stack = self.stack_of(&stopped, &entry.regs, space)?;
        let call = MemoryCall {
            call: wanted.call,
            abi: entry.abi,
            args: wanted.args,
            result_at: wanted.result_at,
            entry: self.stamp(),
            entry_ns: self.now(),
            stack,
        };
        if let Some(released) = self.cannot_fail(&call, space) {
            self.released_unseen(tid, space, &call, released);
            return self.resume(stopped);
        }
        if let Some(space) = self.spaces.get_mut(&space) {
            space.in_flight += 1;
            space.fresh.touched(call.call, &call.args);
        }
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.unseen = None;
            thread.pending = Some(Pending::Memory(call));
        }
        self.go(stopped, Resume::ToSyscall, 0)
    }

    /// The range that a call releases, if it is one that cannot fail. Under `syscall` its exit is
    /// stopped at whether or not we want to.
    fn cannot_fail(&mut self, call: &MemoryCall, space: SpaceId) -> Option<Range> {
        let one_stop = self.task.mechanism == Mechanism::Seccomp && call.abi == Abi::X86_64;
        if !one_stop || call.call != Call::Munmap {
            return None;
        }
        let [addr, len, ..] = call.args;
        let fresh = &mut self.spaces.get_mut(&space)?.fresh;
        let sure = fresh.releases(addr, len, self.max_mappings);
        Range::pages(addr, len).filter(|_| sure)
    }

    fn released_unseen(&mut self, tid: Tid, space: SpaceId, call: &MemoryCall, range: Range) {
        let Some(thread) = self.threads.get(&tid) else {
            return;
        };
        let ix = thread.ix;
        self.code_gone(space, Some(range));
        let exit = self.stamp();
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.unseen = Some(Unseen {
                entry: call.entry,
                exit,
                range,
            });
        }
        let event = call.ended(ix, space, Outcome::Returned(0), exit, call.entry_ns);
        self.push_event(event);
    }

    /// A thread is about to exit. If SIGKILL cut its last release off, only the kernel knows whether
    /// it was made.
    pub(super) fn settle_unseen(&mut self, stopped: &Stopped) -> Result<(), StopError> {
        let tid = stopped.tid();
        let Some(thread) = self.threads.get_mut(&tid) else {
            return Ok(());
        };
        if let (Some(unseen), Some(space)) = (thread.unseen.take(), thread.space)
            && stopped.regs()?.orig_rax == MUNMAP
        {
            self.look(tid, space, unseen.exit, unseen.range, LookCause::Race);
        }
        Ok(())
    }

    /// The same for a thread that died without a stop at its exit. Whatever it did after that
    /// release, others of its space may live to be recorded.
    pub(super) fn settle_unseen_of_the_dead(&mut self, tid: Tid) {
        let Some(thread) = self.threads.get_mut(&tid).filter(|t| !t.exiting) else {
            return;
        };
        if let (Some(unseen), Some(space)) = (thread.unseen.take(), thread.space) {
            self.look(tid, space, unseen.exit, unseen.range, LookCause::Race);
        }
    }

    fn exit(&mut self, stopped: Stopped, value: i64) -> Result<(), StopError> {
        let tid = stopped.tid();
        let pending = self.threads.get_mut(&tid).and_then(|t| t.pending.take());
        match pending {
            Some(Pending::Memory(call)) => self.memory_exit(tid, call, value),
            Some(Pending::Clone(changed)) => changed.put_back(&stopped)?,
            Some(Pending::Ptrace) => self.ptrace_exit(tid, value),
            Some(Pending::Sharer { since }) => self.made_sharer(tid, value, since),
            Some(Pending::Early) => self.recorded_again(tid),
            None => return self.other_exit(stopped, value),
        }
        self.resume(stopped)
    }

    /// A call that is none of ours returns: nothing may have come of it because of us.
    fn other_exit(&mut self, stopped: Stopped, value: i64) -> Result<(), StopError> {
        if value == -i64::from(libc::EINTR)
            && let Some(rip) = interruption::undo_at_exit(&stopped)?
        {
            if let Some(thread) = self.threads.get_mut(&stopped.tid()) {
                thread.undone = Some(rip);
            }
            self.wait_goes_on(&stopped)?;
            return self.resume(stopped);
        }
        self.wait_ends(&stopped)?;
        match self.after_transfer(stopped, value)? {
            Some(stopped) => self.resume(stopped),
            None => Ok(()),
        }
    }

    fn memory_exit(&mut self, tid: Tid, call: MemoryCall, value: i64) {
        let Some(thread) = self.threads.get(&tid) else {
            return;
        };
        let (ix, Some(space)) = (thread.ix, thread.space) else {
            return;
        };
        // A filter of the program's own that answers with SIGSYS leaves the number where the result
        // belongs (SECCOMP_RET_TRAP): the call was not made. No memory call returns its own number.
        let number = call.call.number(call.abi).map(i64::from);
        let value = match number == Some(value) {
            true => -i64::from(libc::ENOSYS),
            false => value,
        };
        let outcome = Outcome::Returned(stored_result(tid, &call, value));
        // Its exit stamp comes when what it speaks of is defined.
        let mut event = call.ended(ix, space, outcome, Stamp(0), self.now());
        let look = match outcome.value() {
            Some(result) => self.succeeded(tid, &mut event, result),
            None => partial_failure(&event),
        };
        if let Some(s) = self.spaces.get_mut(&space) {
            s.fresh.succeeded(&event);
        }
        // What the event speaks of is defined before it.
        self.define_new();
        event.exit = self.stamp();
        let exit = event.exit;
        self.push_event(event);
        if let Some(s) = self.spaces.get_mut(&space) {
            s.in_flight = s.in_flight.saturating_sub(1);
        }
        for (range, cause) in look.into_iter().flatten() {
            self.look(tid, space, exit, range, cause);
        }
        self.space_settled(space);
    }

    /// Follows a successful call in the map of code, names the file of a file mapping, and says
    /// where its arguments do not tell what it did.
    fn succeeded(&mut self, tid: Tid, event: &mut CallEvent, result: u64) -> Looks {
        let args = event.args;
        match event.call.effect() {
            Effect::Map => self.mapped(tid, event, result),
            Effect::Unmap => {
                self.code_gone(event.space, Range::pages(args[0], args[1]));
                NO_LOOK
            }
            Effect::Remap => {
                let old = Range::pages(args[0], args[1]);
                let new = Range::pages(result, args[2]);
                if let (Some(space), Some(old), Some(new)) =
                    (self.spaces.get_mut(&event.space), old, new)
                {
                    space.code.relocate(old, new);
                }
                NO_LOOK
            }
            Effect::Protect => {
                let range = Range::pages(args[0], args[1]);
                if args[2] & PROT_EXEC == 0 {
                    if let (Some(space), Some(range)) = (self.spaces.get_mut(&event.space), range) {
                        space.code.cover(range);
                    }
                } else if let Some(range) = range {
                    self.code_appeared(tid, event.space, range);
                }
                NO_LOOK
            }
            Effect::Detach => NO_LOOK,
            Effect::Look => [self.what_to_look_at(tid, event, result), None],
            Effect::Brk | Effect::Advise => NO_LOOK,
        }
    }

    fn mapped(&mut self, tid: Tid, event: &mut CallEvent, result: u64) -> Looks {
        let [_, len, prot, flags, fd, offset] = event.args;
        let Some(range) = Range::pages(result, len) else {
            return NO_LOOK;
        };
        let private = matches!(flags & MAP_TYPE, MAP_PRIVATE | MAP_DROPPABLE);
        let plain = private && flags & MAP_ANONYMOUS != 0 && flags & MAP_HUGETLB == 0;
        if plain {
            if let Some(space) = self.spaces.get_mut(&event.space) {
                if prot & PROT_EXEC != 0 {
                    space.code.insert_anonymous(range);
                } else {
                    space.code.cover(range);
                }
            }
            return NO_LOOK;
        }
        let Some(space) = self.spaces.get_mut(&event.space) else {
            return NO_LOOK;
        };
        // A file, shared memory or a device: only the kernel knows its device, inode and name, and
        // a driver may have changed the rest.
        let Ok(Some(vma)) = space.maps.at(range.start, &mut self.files) else {
            return [Some((range, LookCause::Acquired)), None];
        };
        event.file = vma.file;
        if prot & PROT_EXEC != 0 {
            let source = Source {
                tid,
                fd: (flags & MAP_ANONYMOUS == 0).then_some(fd as i32),
            };
            let modules = &mut self.unwinder.modules;
            let files = &self.files;
            let part = clip(vma, range).unwrap_or(vma);
            self.code
                .add(modules, &mut space.code, source, &part, files);
        } else {
            space.code.cover(range);
        }
        let offset = match (event.call, flags & MAP_ANONYMOUS != 0) {
            (_, true) => 0,
            (Call::Mmap2, false) => offset << 12,
            (_, false) => offset,
        };
        let found_offset = vma.offset.wrapping_add(range.start.0 - vma.range.start.0);
        let as_asked = flags & MAP_HUGETLB == 0
            && vma.perms == Perms::from_prot(prot, !private)
            && vma.range.end >= range.end
            && found_offset == offset;
        if as_asked {
            NO_LOOK
        } else {
            let range = Range {
                start: range.start,
                end: range.end.max(vma.range.end),
            };
            [Some((range, LookCause::Acquired)), None]
        }
    }

    fn what_to_look_at(
        &mut self,
        tid: Tid,
        event: &CallEvent,
        result: u64,
    ) -> Option<(Range, LookCause)> {
        let whole = |tracer: &mut Tracer, addr: u64| {
            let space = tracer.spaces.get_mut(&event.space)?;
            let vma = space.maps.at(Addr(addr), &mut tracer.files).ok()??;
            Some((vma.range, LookCause::Acquired))
        };
        match event.call {
            Call::Shmat => whole(self, result),
            Call::IoSetup => {
                let at = event.args[1];
                let ring = match event.abi {
                    Abi::X86_64 => memory::read_u64(tid, at),
                    Abi::I386 | Abi::X32 => memory::read_u32(tid, at).map(u64::from),
                }?;
                whole(self, ring)
            }
            Call::MapShadowStack => {
                Some((Range::pages(result, event.args[1])?, LookCause::Acquired))
            }
            Call::RemapFilePages => Some((
                Range::pages(event.args[0], event.args[1])?,
                LookCause::Acquired,
            )),
            // A name for anonymous memory: maps shows it, and nothing is bound to it.
            Call::Prctl if event.args[0] == PR_SET_VMA => None,
            // Rare calls that can touch anything (checkpoint/restore uses them).
            _ => Some((EVERYWHERE, LookCause::Race)),
        }
    }

    fn code_gone(&mut self, space: SpaceId, range: Option<Range>) {
        if let (Some(space), Some(range)) = (self.spaces.get_mut(&space), range) {
            space.code.remove(range);
        }
    }

    /// Memory became executable: what is behind it?
    pub(super) fn code_appeared(&mut self, tid: Tid, space: SpaceId, range: Range) {
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        if let Ok(vmas) = s.maps.within(range, &mut self.files) {
            self.code_is_at(tid, space, &vmas);
        }
    }

    /// Enters the executable ones of these mappings.
    pub(super) fn code_is_at(&mut self, tid: Tid, space: SpaceId, vmas: &[Vma]) {
        let Some(space) = self.spaces.get_mut(&space) else {
            return;
        };
        let source = Source { tid, fd: None };
        let modules = &mut self.unwinder.modules;
        self.code
            .add_all(modules, &mut space.code, source, vmas, &self.files);
    }

    /// Logs what the kernel shows in a range, right after the call with exit stamp `call`.
    fn look(&mut self, tid: Tid, space: SpaceId, call: Stamp, range: Range, cause: LookCause) {
        let Some(s) = self.spaces.get_mut(&space) else {
            return;
        };
        let Ok(vmas) = s.maps.within(range, &mut self.files) else {
            return;
        };
        self.code_is_at(tid, space, &vmas);
        if cause != LookCause::Acquired {
            self.stats.settled += 1;
        }
        self.define_new();
        self.record(Body::Look(Look {
            space,
            cause,
            call,
            range,
            vmas,
        }));
    }

    /// Logs a call that will not come back: its thread died in it, or the window closes.
    pub(super) fn unfinished(&mut self, tid: Tid, call: MemoryCall) {
        let Some(thread) = self.threads.get(&tid) else {
            return;
        };
        let (ix, Some(space)) = (thread.ix, thread.space) else {
            return;
        };
        let exit = self.stamp();
        let event = call.ended(ix, space, Outcome::Unfinished, exit, self.now());
        self.push_event(event);
        if let Some(s) = self.spaces.get_mut(&space) {
            s.in_flight = s.in_flight.saturating_sub(1);
        }
    }

    fn push_event(&mut self, event: CallEvent) {
        let full = self.journal.as_mut().is_some_and(|j| j.event(event));
        if full {
            self.flush();
        }
    }

    fn stack_of(
        &mut self,
        stopped: &Stopped,
        regs: &Regs,
        space: SpaceId,
    ) -> Result<StackId, StopError> {
        let tid = stopped.tid();
        let (Some(space), Some(thread)) = (self.spaces.get(&space), self.threads.get_mut(&tid))
        else {
            return Ok(StackId::NONE);
        };
        let mut target = MemoryOf(tid);
        self.stack
            .fill(regs.rsp(), thread.stack_wanted, &mut target);
        let mut unwind = |regs: &Regs| {
            self.unwinder.unwind(
                &space.code,
                regs,
                &mut self.stack,
                &mut target,
                &mut self.frames,
            )
        };
        if !thread.needs_registers {
            thread.needs_registers = unwind(regs).is_truncated();
        }
        let truncated =
            thread.needs_registers && unwind(&Regs::from(&stopped.regs()?)).is_truncated();
        thread.stack_wanted = self.stack.wanted();
        Ok(self.stacks.intern(&self.frames, truncated))
    }

    fn watched_entry(
        &mut self,
        stopped: Stopped,
        abi: Abi,
        watched: Watched,
        arg0: u64,
    ) -> Result<(), StopError> {
        let tid = stopped.tid();
        let pending = match watched {
            // Nothing is changed in a program that must be as before without us.
            Watched::Clone | Watched::Clone3 if self.task.attached.is_some() => {
                let flags = match watched {
                    Watched::Clone3 => memory::read_u64(tid, arg0).unwrap_or(0),
                    _ => arg0,
                };
                let shares = flags & (CLONE_VM | CLONE_VFORK | CLONE_THREAD) == CLONE_VM;
                let since = self.now();
                (shares && !self.task.follow_forks).then_some(Pending::Sharer { since })
            }
            Watched::Clone if arg0 & CLONE_UNTRACED != 0 => {
                stopped.set_first_argument(abi, arg0 & !CLONE_UNTRACED)?;
                let value = arg0;
                Some(Pending::Clone(Changed::Register { abi, value }))
            }
            Watched::Clone3 => match memory::read_u64(tid, arg0) {
                Some(value) if value & CLONE_UNTRACED != 0 => {
                    match stopped.poke(arg0, value & !CLONE_UNTRACED) {
                        Err(StopError::Refused { .. }) => {
                            // Its words cannot be written. Whoever uses clone3 knows how to do
                            // without it.
                            stopped.answer(-i64::from(libc::ENOSYS))?;
                            None
                        }
                        done => {
                            done?;
                            Some(Pending::Clone(Changed::Word { addr: arg0, value }))
                        }
                    }
                }
                _ => None,
            },
            Watched::Ptrace if WANTS_TO_TRACE.contains(&arg0) && self.is_recording() => {
                Some(Pending::Ptrace)
            }
            Watched::Clone | Watched::Ptrace => None,
        };
        if let Some(thread) = self.threads.get_mut(&tid) {
            thread.pending = pending;
        }
        self.resume(stopped)
    }

    fn ptrace_exit(&mut self, tid: Tid, value: i64) {
        if value != -i64::from(libc::EPERM) {
            return;
        }
        let name = proc::comm(tid);
        self.note(format!(
            "{name} (pid {tid}) asked to be traced, or to trace a process that is being recorded, \
             and was refused: a process has one tracer, and here that is maptrail"
        ));
    }
}

/// What a thread is about to ask of the kernel.
struct Entry {
    abi: Abi,
    number: u64,
    args: [u64; 6],
    /// Its registers, as far as they are known.
    regs: Regs,
}

/// Up to two ranges that must be looked at.
type Looks = [Option<(Range, LookCause)>; 2];
const NO_LOOK: Looks = [None, None];

/// Where a failed call may have acted in part (design: *acquire at exit, release at entry*).
fn partial_failure(event: &CallEvent) -> Looks {
    let [a0, a1, a2, a3, a4, _] = event.args;
    let at = |start, len| Range::pages(start, len).map(|r| (r, LookCause::PartialFailure));
    // Mostly refused before anything was done; but what is mapped over a range may refuse when that
    // is empty already.
    let invalid = event.outcome.errno() == Some(libc::EINVAL);
    match event.call.effect() {
        Effect::Map if a3 & MAP_FIXED != 0 && a3 & MAP_FIXED_NOREPLACE == 0 => [at(a0, a1), None],
        Effect::Remap if a3 & MREMAP_FIXED != 0 => [at(a0, a1), at(a4, a2)],
        _ if invalid => NO_LOOK,
        Effect::Protect | Effect::Remap => [at(a0, a1), None],
        Effect::Unmap if event.outcome.errno() == Some(libc::ENOMEM) => [at(a0, a1), None],
        Effect::Look if event.call == Call::RemapFilePages => [at(a0, a1), None],
        _ => NO_LOOK,
    }
}

/// The result of a call that stores it in memory.
fn stored_result(tid: Tid, call: &MemoryCall, value: i64) -> i64 {
    match (call.call, call.result_at) {
        (Call::Shmat, Some(at)) if value == 0 => memory::read_u32(tid, at).map_or(value, i64::from),
        _ => value,
    }
}
