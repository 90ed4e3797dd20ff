//! Steps from frames that no unwind information describes: by what their code says, by frame pointers, and
//! last by what lies on the stack.
//!
//! None of this is proof. A caller is believed only if a call ends right before its address, and the frame
//! is marked.

use maptrail_tracelog::types::ModuleId;
use rustc_hash::FxHashMap;

use super::address_map::{AddressMap, Code};
use super::memory::{StackCopy, TargetMemory};
use super::modules::Modules;
use super::reading::{CALL_BYTES, ends_with_call};
use super::rules::Rule;
use super::step::{Cursor, Origin};
use super::{Cut, End, Unwinder, Walk};

/// Words of the stack that are searched for a return address.
const SEARCHED: u64 = 512;
/// How far up the stack a frame pointer may point to be believed, bytes.
const FRAME: u64 = 1 << 20;
/// The page of the calls that the kernel emulates (`VSYSCALL_ADDR` in asm/vsyscall.h): three functions that
/// have no frame and return at once.
const VSYSCALL: std::ops::Range<u64> = 0xffff_ffff_ff60_0000..0xffff_ffff_ff60_1000;

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
            self.0.insert(place, is_behind_call);
        }
        is_behind_call
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
        if VSYSCALL.contains(&pc) {
            return self.return_at(self.cursor.rsp(), stack, mem);
        }
        let has_file = code.module.0 != 0;
        let rule = match rule {
            Rule::Unknown if !has_file => unwinder.rules.without_file(pc, mem),
            rule => rule,
        };
        if let Some(origin) = self.step_read(rule, unwinder, space, stack, mem) {
            return Ok(origin);
        }
        // What was written for another function that stood here need not be right for this one.
        if !has_file && rule != Rule::Unknown {
            unwinder.rules.forget_without_file(pc);
        }
        // The way by the code needs fewer registers than those below.
        if !self.all_known {
            return Err(End::Truncated(Cut::LostRegister));
        }
        let by_frame_pointer = self.cursor.by_frame_pointer(stack, mem);
        let modules = &unwinder.modules;
        let caller = by_frame_pointer
            .filter(|caller| unwinder.calls.precede(caller.rip, modules, space, mem))
            .or_else(|| self.search(unwinder, space, stack, mem));
        match caller {
            Some(caller) => {
                self.cursor = caller;
                Ok(Origin::StackPointer)
            }
            // A chain of frame pointers ends with 0, by the ABI.
            None if self.cursor.rbp() == Some(0) => Err(End::Root),
            None => Err(End::Truncated(Cut::NoRule)),
        }
    }

    /// Steps by a rule that was read from code; `None` if it does not lead to a caller.
    fn step_read(
        &mut self,
        rule: Rule,
        unwinder: &mut Unwinder,
        space: &AddressMap,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Option<Origin> {
        let Rule::Read(index) = rule else {
            return None;
        };
        let general = unwinder.rules.general(index)?;
        let mut caller = self.cursor.clone();
        let origin = caller.step_general(general, stack, mem).ok()?;
        let is_upwards = origin == Origin::Anywhere || caller.rsp() > self.cursor.rsp();
        let modules = &unwinder.modules;
        let is_caller = caller.rip == 0 || unwinder.calls.precede(caller.rip, modules, space, mem);
        if !is_upwards || !is_caller {
            return None;
        }
        self.cursor = caller;
        Some(origin)
    }

    /// The nearest return address on the stack.
    fn search(
        &self,
        unwinder: &mut Unwinder,
        space: &AddressMap,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Option<Cursor> {
        let modules = &unwinder.modules;
        let sp = self.cursor.rsp();
        let mut below = None;
        for at in (0..SEARCHED).map(|word| sp.wrapping_add(8 * word)) {
            let word = stack.read_u64(at, mem)?;
            if unwinder.calls.precede(word, modules, space, mem) {
                let above = at.wrapping_add(8);
                let own = self.cursor.rbp();
                let is_frame = |rbp: &u64| (above..above.wrapping_add(FRAME)).contains(rbp);
                // What was saved last lies below the return address; else nobody changed it.
                let mut rbp = below.filter(is_frame).filter(|rbp| {
                    let behind = stack.read_u64(rbp.wrapping_add(8), mem);
                    behind.is_some_and(|pc| unwinder.calls.precede(pc, modules, space, mem))
                });
                rbp = rbp.or(own.filter(is_frame));
                return Some(self.cursor.returned(at, word, rbp));
            }
            below = Some(word);
        }
        None
    }

    fn return_at(
        &mut self,
        at: u64,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Result<Origin, End> {
        let pc = stack.read_u64(at, mem);
        let pc = pc.ok_or(End::Truncated(Cut::Unreadable))?;
        self.cursor.leave_leaf(at, pc);
        Ok(Origin::StackPointer)
    }
}
