//! The machine at one place of a path through code: what each instruction does to registers and stack, and the
//! rule that follows from it.

use std::rc::Rc;

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::super::regs::dwarf;
use super::super::rules::{Cfa, Entered, General, PRESERVED, Saved};
use super::term::{Term, Value, bounded, plus};

/// Words of the stack that one path may write.
const MAX_STORES: usize = 96;

/// The machine at one place of a path.
#[derive(Clone)]
pub(super) struct State {
    registers: [Value; 16],
    /// Words written, by address; the last one holds.
    stores: Vec<(Rc<Term>, Value)>,
}

impl State {
    pub fn new() -> State {
        State {
            registers: std::array::from_fn(|register| Some(Rc::new(Term::Start(register as u16)))),
            stores: Vec::new(),
        }
    }

    /// Whether it wrote more words than are kept.
    pub fn is_full(&self) -> bool {
        self.stores.len() > MAX_STORES
    }

    fn get(&self, register: usize) -> Value {
        self.registers.get(register)?.clone()
    }

    fn set(&mut self, register: usize, value: Value) {
        if let Some(slot) = self.registers.get_mut(register) {
            *slot = value;
        }
    }

    fn sp(&self) -> Value {
        self.get(dwarf::RSP)
    }

    fn load(&self, address: &Value) -> Value {
        let address = address.as_ref()?;
        let written = self.stores.iter().rev().find(|(at, _)| at == address);
        match written {
            Some((_, value)) => value.clone(),
            None => bounded(Term::Load(Rc::clone(address))),
        }
    }

    fn store(&mut self, address: Value, value: Value) {
        if let Some(address) = address {
            self.stores.retain(|(at, _)| *at != address);
            self.stores.push((address, value));
        }
    }

    fn push(&mut self, value: Value) {
        let sp = plus(&self.sp(), -8);
        self.set(dwarf::RSP, sp.clone());
        self.store(sp, value);
    }

    fn pop(&mut self) -> Value {
        let sp = self.sp();
        let value = self.load(&sp);
        self.set(dwarf::RSP, plus(&sp, 8));
        value
    }

    /// The address of an instruction's memory operand.
    fn address(&self, instruction: &Instruction) -> Value {
        if instruction.memory_index() != Register::None {
            return None;
        }
        let base = match instruction.memory_base() {
            Register::None => Some(Rc::new(Term::Number(0))),
            base => self.get(number(base)?),
        };
        let offset = plus(&base, instruction.memory_displacement64().cast_signed());
        match (instruction.memory_segment(), offset.as_deref()) {
            (Register::FS, Some(Term::Number(offset))) => {
                plus(&Some(Rc::new(Term::Start(dwarf::FS_BASE))), *offset)
            }
            (Register::FS | Register::GS, _) => None,
            _ => offset,
        }
    }

    /// What an operand of eight bytes holds.
    fn operand(&self, instruction: &Instruction, operand: u32) -> Value {
        match instruction.op_kind(operand) {
            OpKind::Register => self.get(number(instruction.op_register(operand))?),
            OpKind::Memory => self.load(&self.address(instruction)),
            OpKind::Immediate32to64 | OpKind::Immediate64 => {
                let number = instruction.immediate(operand).cast_signed();
                Some(Rc::new(Term::Number(number)))
            }
            _ => None,
        }
    }

    /// Does what an instruction does, as far as it can be told.
    pub fn execute(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        let immediate = |operand| {
            let kind = instruction.op_kind(operand);
            let is_number = matches!(
                kind,
                OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64
            );
            is_number.then(|| instruction.immediate(operand).cast_signed())
        };
        let target = match instruction.op_count() {
            0 => None,
            _ if instruction.op0_kind() == OpKind::Register => number(instruction.op0_register()),
            _ => None,
        };
        match (instruction.mnemonic(), target) {
            (Mnemonic::Push, _) if instruction.stack_pointer_increment() == -8 => {
                let value = self.operand(instruction, 0);
                self.push(value);
            }
            (Mnemonic::Pushfq, _) => self.push(None),
            (Mnemonic::Popfq, _) => {
                self.pop();
            }
            (Mnemonic::Pop, Some(register)) => {
                let value = self.pop();
                self.set(register, value);
            }
            (Mnemonic::Leave, _) => {
                self.set(dwarf::RSP, self.get(dwarf::RBP));
                let value = self.pop();
                self.set(dwarf::RBP, value);
            }
            (Mnemonic::Mov, Some(register)) => {
                let value = self.operand(instruction, 1);
                self.set(register, value);
            }
            (Mnemonic::Mov, None) if instruction.code() == Code::Mov_rm64_r64 => {
                let value = self.operand(instruction, 1);
                self.store(self.address(instruction), value);
            }
            (Mnemonic::Lea, Some(register)) => self.set(register, self.address(instruction)),
            (Mnemonic::Add | Mnemonic::Sub, Some(register)) if immediate(1).is_some() => {
                let offset = immediate(1).unwrap_or_default();
                let offset = match instruction.mnemonic() {
                    Mnemonic::Add => offset,
                    _ => offset.wrapping_neg(),
                };
                self.set(register, plus(&self.get(register), offset));
            }
            (Mnemonic::Sub, Some(register)) => {
                let both = (self.get(register), self.operand(instruction, 1));
                let value = match both {
                    (Some(a), Some(b)) => bounded(Term::Minus(a, b)),
                    _ => None,
                };
                self.set(register, value);
            }
            (Mnemonic::Call, _) => self.forget_volatile(),
            _ => self.forget_written(instruction, info),
        }
    }

    /// What a function that is called need not give back.
    fn forget_volatile(&mut self) {
        for (register, value) in self.registers.iter_mut().enumerate() {
            let kept = register == dwarf::RSP || PRESERVED.contains(&register);
            if !kept {
                *value = None;
            }
        }
    }

    /// Whatever else an instruction does: what it writes is not known any more.
    fn forget_written(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
        let writes = |access| {
            matches!(
                access,
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            )
        };
        let info = info.info(instruction);
        for used in info
            .used_registers()
            .iter()
            .filter(|used| writes(used.access()))
        {
            if let Some(register) = number(used.register().full_register()) {
                self.set(register, None);
            }
        }
        if info.used_memory().iter().any(|used| writes(used.access())) {
            let address = self.address(instruction);
            self.store(address, None);
        }
    }

    /// The rule at a return, or at a jump to what returns.
    pub fn returning_rule(&self, instruction: &Instruction) -> Option<General> {
        let sp = self.sp()?;
        let taken = match (instruction.mnemonic(), instruction.op_count()) {
            (Mnemonic::Ret, 1) => i64::from(instruction.immediate16()),
            _ => 0,
        };
        let cfa = plus(&Some(Rc::clone(&sp)), 8 + taken)?;
        let saved = |value: &Value| match value.as_deref() {
            None => Saved::Undefined,
            Some(Term::Load(at)) => match at.place() {
                Some((register, offset)) => Saved::At(register, offset),
                None => Saved::Expression(at.expression()),
            },
            Some(term) => match term.place() {
                Some((register, 0)) => Saved::Register(register),
                _ => Saved::Value(term.expression()),
            },
        };
        let changed = PRESERVED.iter().filter_map(|&register| {
            let value = self.get(register);
            let same = value.as_deref() == Some(&Term::Start(register as u16));
            (!same).then(|| (register as u8, saved(&value)))
        });
        Some(General {
            entered: Entered::Call,
            cfa: match cfa.place() {
                Some((register, offset)) => Cfa::Register(register, offset),
                None => Cfa::Expression(cfa.expression()),
            },
            return_address: saved(&Some(Rc::new(Term::Load(sp)))),
            registers: changed.collect(),
        })
    }

    /// The rule at a place inside of a function, from what happened since it was entered.
    pub fn entered_rule(&self) -> Option<General> {
        let entry = |value: &Value| match value.as_ref()?.place()? {
            (register, offset) if usize::from(register) == dwarf::RSP => Some(offset),
            _ => None,
        };
        // Which register still knows where the stack pointer was at the function's entry.
        let known = std::iter::once(dwarf::RSP).chain(PRESERVED);
        let (register, offset) = (known.into_iter())
            .find_map(|register| Some((register, entry(&self.get(register))?)))?;
        let cfa_offset = 8_i64.wrapping_sub(offset);
        let saved = |register: usize| {
            let slot = self
                .stores
                .iter()
                .rev()
                .find(|(_, value)| value.as_deref() == Some(&Term::Start(register as u16)));
            let at = slot.and_then(|(address, _)| entry(&Some(Rc::clone(address))));
            at.map_or(Saved::Undefined, |at| Saved::AtCfa(at.wrapping_sub(8)))
        };
        let changed = PRESERVED.iter().filter_map(|&register| {
            let same = self.get(register).as_deref() == Some(&Term::Start(register as u16));
            (!same).then(|| (register as u8, saved(register)))
        });
        Some(General {
            entered: Entered::Call,
            cfa: Cfa::Register(register as u16, cfa_offset),
            return_address: Saved::AtCfa(-8),
            registers: changed.collect(),
        })
    }
}

/// DWARF's number of a general register of eight bytes.
fn number(register: Register) -> Option<usize> {
    const ORDER: [Register; 16] = [
        Register::RAX,
        Register::RDX,
        Register::RCX,
        Register::RBX,
        Register::RSI,
        Register::RDI,
        Register::RBP,
        Register::RSP,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    ORDER.iter().position(|&other| other == register)
}
