//! Steps from frames that no unwind information describes: by what their code says, by frame pointers, and
//! last by what lies on the stack.
//!
//! None of this is proof. A caller is believed only if a call ends right before its address (or if both lie
//! in a JIT's code, whose interpreter calls with a jump), and the frame is marked. What lies further out stands
//! on it.

use maptrail_tracelog::types::ModuleId;
use rustc_hash::FxHashMap;

use super::address_map::{AddressMap, Code};
use super::memory::{StackCopy, TargetMemory};
use super::modules::Modules;
use super::reading::{CALL_BYTES, ends_with_call};
use super::rules::{General, Rule};
use super::step::{Cursor, Origin};
use super::{Cut, End, Unwinder, Walk};

/// Places whose answer is kept: what lies on a stack may be any.
const MAX_KNOWN: usize = 1 << 18;
/// Words of the stack that are searched for a return address.
const SEARCHED: u64 = 512;
/// How far up the stack a frame pointer may point to be believed, bytes.
const FRAME: u64 = 1 << 20;

/// Searches of one stack: a stack that needs more was made to need them.
const MAX_SEARCHES: u32 = 32;

/// How a search for a return address ended that found none.
enum Searched {
    /// Where the stack does.
    ToTheEnd,
    /// It had cost enough.
    Enough,
}

/// Which return addresses follow a call, as far as that was asked.
#[derive(Default)]
pub(super) struct Calls(FxHashMap<(ModuleId, u64), bool>);

impl Calls {
    /// Whether `pc` lies in code, and behind a call.
    fn precede(
        &mut self,
        pc: u64,
        modules: &Modules,
        space: &AddressMap,
        mem: &mut impl TargetMemory,
    ) -> bool {
        let Some(code) = space.lookup(pc.wrapping_sub(1)) else {
            return false;
        };
        let place = (code.module, pc.wrapping_sub(code.bias));
        if let Some(known) = self.0.get(&place) {
            return *known;
        }
        let mut bytes = [0; CALL_BYTES];
        let before = CALL_BYTES as u64;
        let from_file = modules.code_at(code.module, place.1.wrapping_sub(before));
        let is_behind_call = match from_file {
            Some(bytes) => {
                ends_with_call::<CALL_BYTES>(&bytes)
                    || modules.is_goexit(code.module, place.1.wrapping_sub(1))
            }
            None => {
                let read = mem.read(pc.wrapping_sub(before), &mut bytes);
                read == bytes.len() && ends_with_call(&bytes)
            }
        };
        // Memory without a file may hold a call tomorrow.
        if is_behind_call || code.module.0 != 0 {
            if self.0.len() >= MAX_KNOWN {
                self.0.clear();
            }
            self.0.insert(place, is_behind_call);
        }
        is_behind_call
    }
}

impl Unwinder {
    fn is_behind_call(&mut self, pc: u64, space: &AddressMap, mem: &mut impl TargetMemory) -> bool {
        self.calls.precede(pc, &self.modules, space, mem)
    }

    /// Whether code that has a file, or not, may have been called from before `pc`. Interpreters call with a
    /// jump, and put where to go on afterwards on the stack; compilers that work while a program runs know
    /// of it.
    fn may_call(
        &mut self,
        pc: u64,
        has_file: bool,
        space: &AddressMap,
        mem: &mut impl TargetMemory,
    ) -> bool {
        let is_without_file =
            || (space.lookup(pc.wrapping_sub(1))).is_some_and(|code| code.module.0 == 0);
        (!has_file && is_without_file()) || self.is_behind_call(pc, space, mem)
    }

    /// Whether a caller that was found on the stack has a caller, or needs none: what was left behind by
    /// functions that have returned leads nowhere. Of code without unwind information nobody can tell.
    fn goes_on_from(
        &mut self,
        caller: &Cursor,
        space: &AddressMap,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> bool {
        let svma = caller.rip.wrapping_sub(1);
        let Some(code) = space.lookup(svma).filter(|code| code.module.0 != 0) else {
            return true;
        };
        let svma = svma.wrapping_sub(code.bias);
        let mut next = caller.clone();
        let stepped = match *self.rules.at(&self.modules, code.module, svma, true) {
            Rule::Usual(usual) => next.step_usual(&usual, stack, mem),
            Rule::General(index) => match self.rules.general(index) {
                Some(general) => next.step_general(general, stack, mem),
                None => return false,
            },
            Rule::Bad => return false,
            Rule::Root | Rule::Read(_) | Rule::Unknown => return true,
        };
        stepped.is_ok() && (next.rip == 0 || self.is_behind_call(next.rip, space, mem))
    }
}

impl Walk {
    /// Steps out of a frame in `code` without CFI. `rule` is what its code says, where it says something.
    #[cold]
    pub(super) fn guess(
        &mut self,
        rule: Rule,
        code: Code,
        unwinder: &mut Unwinder,
        space: &AddressMap,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Result<Origin, End> {
        let pc = self.cursor.rip;
        let has_file = code.module.0 != 0;
        let read = match rule {
            Rule::Read(index) => {
                let general = unwinder.rules.general(index);
                general.and_then(|general| self.step_read(general, stack, mem))
            }
            // No file, or none of which the code could be read.
            _ => {
                let general = unwinder.rules.without_file(pc, mem);
                general.and_then(|general| self.step_read(&general, stack, mem))
            }
        };
        if let Some((caller, origin)) = read {
            let is_caller = match caller.rip {
                0 => has_file,
                pc => unwinder.may_call(pc, has_file, space, mem),
            };
            if is_caller {
                self.cursor = caller;
                return Ok(origin);
            }
        }
        unwinder.rules.check_without_file(pc, mem);
        // The way by the code needs fewer registers than those below.
        if !self.all_known {
            return Err(End::Truncated(Cut::LostRegister));
        }
        let by_frame_pointer = self.cursor.by_frame_pointer(stack, mem);
        let caller = by_frame_pointer
            .filter(|caller| unwinder.may_call(caller.rip, has_file, space, mem))
            .map_or_else(|| self.search(unwinder, space, stack, mem), Ok);
        match caller {
            Ok(caller) => {
                self.cursor = caller;
                Ok(Origin::StackPointer)
            }
            // A chain of frame pointers ends with 0, by the ABI.
            Err(Searched::ToTheEnd) if has_file && self.cursor.rbp() == Some(0) => Err(End::Root),
            Err(_) => Err(End::Truncated(Cut::NoRule)),
        }
    }

    /// Where a rule that was read from code leads.
    fn step_read(
        &self,
        rule: &General,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Option<(Cursor, Origin)> {
        let mut caller = self.cursor.clone();
        let origin = caller.step_general(rule, stack, mem).ok()?;
        let is_upwards = origin == Origin::Anywhere || caller.rsp() > self.cursor.rsp();
        is_upwards.then_some((caller, origin))
    }

    /// The nearest return address on the stack.
    fn search(
        &mut self,
        unwinder: &mut Unwinder,
        space: &AddressMap,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Result<Cursor, Searched> {
        if self.searches == MAX_SEARCHES {
            return Err(Searched::Enough);
        }
        self.searches += 1;
        let sp = self.cursor.rsp();
        let mut below = None;
        for at in (0..SEARCHED).map(|word| sp.wrapping_add(8 * word)) {
            let word = stack.read_u64(at, mem).ok_or(Searched::ToTheEnd)?;
            if unwinder.is_behind_call(word, space, mem) {
                let above = at.wrapping_add(8);
                let own = self.cursor.rbp();
                let is_frame = |rbp: &u64| (above..above.wrapping_add(FRAME)).contains(rbp);
                // What was saved last lies below the return address; else nobody changed it.
                let mut rbp = below.filter(is_frame).filter(|rbp| {
                    let behind = stack.read_u64(rbp.wrapping_add(8), mem);
                    behind.is_some_and(|pc| unwinder.is_behind_call(pc, space, mem))
                });
                rbp = rbp.or(own.filter(is_frame));
                let caller = self.cursor.returned(at, word, rbp);
                if unwinder.goes_on_from(&caller, space, stack, mem) {
                    return Ok(caller);
                }
            }
            below = Some(word);
        }
        Err(Searched::Enough)
    }
}
