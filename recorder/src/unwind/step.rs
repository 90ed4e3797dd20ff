//! One step from a frame to its caller: a rule applied to registers and memory.

use super::expression::evaluate;
use super::memory::{StackCopy, TargetMemory};
use super::regs::{Regs, dwarf};
use super::rules::{Cfa, Entered, General, PRESERVED, Saved, Usual};
use super::{Cut, End};

/// Registers as they were in some frame. Those whose value is lost are not `valid`.
#[derive(Clone)]
pub(super) struct Cursor {
    gpr: [u64; 16],
    valid: u16,
    pub rip: u64,
    /// The same in all frames; 0 if it is not known.
    fs_base: u64,
}

/// How the CFA was found: what it may be compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the stack pointer: it must lie above it.
    StackPointer,
    /// From another register: a function that runs on a stack of its own finds its caller's by it.
    Register,
    /// By an expression or a signal frame: it may lie anywhere.
    Anywhere,
}

impl Cursor {
    pub fn new(regs: &Regs) -> Cursor {
        Cursor {
            gpr: regs.gpr,
            valid: regs.known,
            rip: regs.rip,
            fs_base: regs.fs_base,
        }
    }

    /// The stack pointer; the CFA of the frame stepped out of last.
    #[inline]
    pub fn rsp(&self) -> u64 {
        self.gpr[dwarf::RSP]
    }

    /// `rbp`, if it is known.
    pub fn rbp(&self) -> Option<u64> {
        self.get(dwarf::RBP as u16)
    }

    #[inline]
    fn get(&self, register: u16) -> Option<u64> {
        match register {
            dwarf::RA => return Some(self.rip),
            dwarf::FS_BASE => return Some(self.fs_base).filter(|base| *base != 0),
            _ => {}
        }
        let value = self.gpr.get(usize::from(register))?;
        (self.valid >> register & 1 != 0).then_some(*value)
    }

    #[inline]
    fn set(&mut self, register: usize, value: Option<u64>) {
        if let Some(slot) = self.gpr.get_mut(register) {
            match value {
                Some(value) => {
                    *slot = value;
                    self.valid |= 1 << register;
                }
                None => self.valid &= !(1 << register),
            }
        }
    }

    /// Applies a usual rule.
    #[inline]
    pub fn step_usual(
        &mut self,
        rule: &Usual,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Result<Origin, End> {
        let register = usize::from(rule.cfa_register & 15);
        if self.valid >> register & 1 == 0 {
            return Err(End::Truncated(Cut::LostRegister));
        }
        let cfa = self.gpr[register].wrapping_add_signed(rule.cfa_offset.into());
        self.rip = stack
            .read_u64(cfa.wrapping_sub(8), mem)
            .ok_or(End::Truncated(Cut::Unreadable))?;
        for (&units, register) in rule.saved.iter().zip(PRESERVED) {
            if units != 0 {
                let at = cfa.wrapping_add_signed(i64::from(units) * 8);
                self.set(register, stack.read_u64(at, mem));
            }
        }
        self.set(dwarf::RSP, Some(cfa));
        Ok(if register == dwarf::RSP {
            Origin::StackPointer
        } else {
            Origin::Register
        })
    }

    /// Applies any rule.
    pub fn step_general(
        &mut self,
        rule: &General,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Result<Origin, End> {
        let get = |register: u16| self.get(register);
        let (cfa, origin) = match &rule.cfa {
            Cfa::Register(register, offset) => {
                let base = get(*register).ok_or(End::Truncated(Cut::LostRegister))?;
                let origin = if usize::from(*register) == dwarf::RSP {
                    Origin::StackPointer
                } else {
                    Origin::Register
                };
                (Some(base.wrapping_add_signed(*offset)), origin)
            }
            Cfa::Deref(register, offset) => {
                let base = get(*register).ok_or(End::Truncated(Cut::LostRegister))?;
                let cfa = stack.read_u64(base.wrapping_add_signed(*offset), mem);
                (cfa, Origin::Anywhere)
            }
            Cfa::Expression(code) => {
                let cfa = evaluate(code, None, get, |addr| stack.read_u64(addr, mem));
                (cfa, Origin::Anywhere)
            }
        };
        let cfa = cfa.ok_or(End::Truncated(Cut::Unreadable))?;
        let mut value = |saved: &Saved, same: Option<u64>| match saved {
            Saved::Undefined => None,
            Saved::Same => same,
            Saved::AtCfa(offset) => stack.read_u64(cfa.wrapping_add_signed(*offset), mem),
            Saved::Cfa(offset) => Some(cfa.wrapping_add_signed(*offset)),
            Saved::Register(register) => get(*register),
            Saved::At(register, offset) => {
                stack.read_u64(get(*register)?.wrapping_add_signed(*offset), mem)
            }
            Saved::Expression(code) => {
                let at = evaluate(code, Some(cfa), get, |addr| stack.read_u64(addr, mem))?;
                stack.read_u64(at, mem)
            }
            Saved::Value(code) => evaluate(code, Some(cfa), get, |addr| stack.read_u64(addr, mem)),
            Saved::Constant(value) => Some(*value),
        };
        let return_address =
            value(&rule.return_address, None).ok_or(End::Truncated(Cut::Unreadable))?;
        let mut caller = Cursor {
            gpr: self.gpr,
            valid: self.valid,
            rip: return_address,
            fs_base: self.fs_base,
        };
        caller.set(dwarf::RSP, Some(cfa));
        for (register, saved) in &rule.registers {
            let value = value(saved, get(u16::from(*register)));
            caller.set(usize::from(*register), value);
        }
        // The stack pointer is where the next frame's locals are; without it nothing can be told.
        if caller.valid >> dwarf::RSP & 1 == 0 {
            return Err(End::Truncated(Cut::LostRegister));
        }
        *self = caller;
        // What goes on at an address in a register may have left its frame already.
        let has_left = matches!(rule.return_address, Saved::Register(_));
        Ok(if rule.entered == Entered::Signal || has_left {
            Origin::Anywhere
        } else {
            origin
        })
    }

    /// Follows a saved frame pointer: `rbp` points to the caller's `rbp`, and the return address lies
    /// above it. `None` if it does not look like that.
    pub fn by_frame_pointer(
        &self,
        stack: &mut StackCopy,
        mem: &mut impl TargetMemory,
    ) -> Option<Cursor> {
        let rbp = self
            .rbp()
            .filter(|rbp| *rbp >= self.rsp() && rbp % 8 == 0)?;
        let saved = stack.read_u64(rbp, mem)?;
        let return_address = stack.read_u64(rbp.wrapping_add(8), mem)?;
        Some(self.returned(rbp.wrapping_add(8), return_address, Some(saved)))
    }

    /// The caller, if its return address lies at `at`. What the function did to the other registers is
    /// not known.
    pub fn returned(&self, at: u64, return_address: u64, rbp: Option<u64>) -> Cursor {
        let mut caller = Cursor {
            gpr: self.gpr,
            valid: 0,
            rip: return_address,
            fs_base: self.fs_base,
        };
        caller.set(dwarf::RBP, rbp);
        caller.set(dwarf::RSP, Some(at.wrapping_add(8)));
        caller
    }
}
