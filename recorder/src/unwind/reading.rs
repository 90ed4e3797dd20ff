//! How a function finds its caller, read from its own instructions, where no unwind information says it:
//! hand-written assembly, C libraries built without it (musl), stripped Go, code of a JIT.
//!
//! Two ways. From where a function begins, its instructions are followed to the place in question: what was
//! pushed until there is its frame. Where nobody knows the beginning, they are followed from the place on to
//! the return: what is popped until there was its frame. Both ways keep, for every register and every word
//! of the stack, what it holds in terms of the registers at the start, and that makes the rule.
//!
//! A call is taken to give back the stack pointer and the preserved registers. What cannot be told
//! (indirect jumps, arithmetic with unknown numbers) ends a path; the next one is tried. What comes of it is
//! plausible, not proved: whoever uses it makes sure that the caller's address follows a call.

use std::rc::Rc;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};
use rustc_hash::FxHashSet;

use super::regs::dwarf;
use super::rules::{Cfa, Entered, General, PRESERVED, Saved};

/// Instructions after which a reading is given up.
const MAX_INSTRUCTIONS: u32 = 10_000;
/// Places to go on at, kept while one path is followed.
const MAX_PATHS: usize = 64;
/// Words of the stack that one path may write.
const MAX_STORES: usize = 96;
/// How deep a value may refer to others.
const MAX_DEPTH: u32 = 12;
/// Instructions of the code that a program starts with, at most.
const LONGEST_ENTRY: u32 = 64;
/// Instructions from a call that a thread began with to its end, at most.
const LONGEST_EXIT: u32 = 8;
/// Bytes of code that are fetched at a time.
const WINDOW: usize = 256;
/// The longest instruction, bytes.
const LONGEST: usize = 15;
/// The longest call, bytes: prefix, operation, address with index and displacement.
const LONGEST_CALL: usize = 8;

/// Bytes of code by address: fills what there is from an address on, and says how much.
pub(super) type Fetch<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> usize;

/// The rule at `pc` of the function that begins at `start`. `after_call`: `pc` is a return address.
pub(super) fn from_start(
    fetch: Fetch<'_>,
    start: u64,
    pc: u64,
    after_call: bool,
) -> Option<General> {
    let mut found = None;
    Reading::of(fetch).follow(start, |instruction, state| {
        // The call itself changes nothing that the rule is made of.
        let is_there = match after_call {
            true => is_call(instruction) && instruction.next_ip() == pc,
            false => instruction.ip() == pc,
        };
        if is_there {
            found = state.entered_rule();
        }
        is_there
    });
    found
}

/// The rule at `pc`, by what follows it: a return, or, if there is none, a jump that nobody can follow,
/// since functions end with a jump to another one, too.
pub(super) fn to_return(fetch: Fetch<'_>, pc: u64) -> Option<General> {
    let (mut returning, mut jumping) = (None, None);
    Reading::of(fetch).follow(pc, |instruction, state| {
        match instruction.flow_control() {
            FlowControl::Return if instruction.mnemonic() == Mnemonic::Ret => {
                returning = state.returning_rule(instruction);
            }
            FlowControl::IndirectBranch if jumping.is_none() => {
                jumping = state.returning_rule(instruction);
            }
            _ => {}
        }
        returning.is_some()
    });
    returning.or(jumping)
}

/// Where the code that begins at `start` goes over into other code, if it is read straight on.
pub(super) fn end_of(fetch: Fetch<'_>, start: u64) -> u64 {
    let mut reading = Reading::of(fetch);
    let mut pc = start;
    for _ in 0..LONGEST_ENTRY {
        let Some(instruction) = reading.decode(pc) else {
            break;
        };
        pc = instruction.next_ip();
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            FlowControl::Call | FlowControl::IndirectCall if !reading.is_padding(pc) => {}
            _ => break,
        }
    }
    pc
}

/// Whether the code at `pc` ends its thread at once.
pub(super) fn exits(fetch: Fetch<'_>, pc: u64) -> bool {
    let mut reading = Reading::of(fetch);
    let mut pc = pc;
    let mut number = 0;
    for _ in 0..LONGEST_EXIT {
        let Some(instruction) = reading.decode(pc) else {
            return false;
        };
        pc = instruction.next_ip();
        let is_number = matches!(instruction.op0_register(), Register::AL | Register::EAX)
            && instruction.mnemonic() == Mnemonic::Mov
            && matches!(
                instruction.op1_kind(),
                OpKind::Immediate8 | OpKind::Immediate32
            );
        match instruction.mnemonic() {
            Mnemonic::Syscall => return matches!(number, libc::SYS_exit | libc::SYS_exit_group),
            _ if is_number => number = i64::from(instruction.immediate32()),
            _ if instruction.flow_control() != FlowControl::Next => return false,
            _ => {}
        }
    }
    false
}

/// Whether code could have called what returns to its end: the bytes before a return address end with a
/// call.
pub(super) fn ends_with_call<const N: usize>(before: &[u8; N]) -> bool {
    (2..=LONGEST_CALL).any(|length| {
        let Some(at) = before.len().checked_sub(length) else {
            return false;
        };
        let bytes = before.get(at..).unwrap_or_default();
        let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        instruction.len() == length && is_call(&instruction)
    })
}

/// How many bytes before a return address [`ends_with_call`] wants to see.
pub(super) const CALL_BYTES: usize = LONGEST_CALL;

fn is_call(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::Call | FlowControl::IndirectCall
    ) && instruction.mnemonic() == Mnemonic::Call
}

/// What something holds, in terms of the registers where the reading began. `None` if nobody knows.
type Value = Option<Rc<Term>>;

#[derive(Debug, PartialEq)]
enum Term {
    /// A register, by DWARF's number.
    Start(u16),
    Plus(Rc<Term>, i64),
    Minus(Rc<Term>, Rc<Term>),
    /// The word of memory there.
    Load(Rc<Term>),
}

impl Term {
    fn depth(&self) -> u32 {
        match self {
            Term::Start(_) => 0,
            Term::Plus(of, _) | Term::Load(of) => 1 + of.depth(),
            Term::Minus(a, b) => 1 + a.depth().max(b.depth()),
        }
    }

    /// As a register plus a number.
    fn place(&self) -> Option<(u16, i64)> {
        match self {
            Term::Start(register) => Some((*register, 0)),
            Term::Plus(of, offset) => match **of {
                Term::Start(register) => Some((register, *offset)),
                _ => None,
            },
            _ => None,
        }
    }

    /// As a DWARF expression.
    fn code(&self, into: &mut Vec<u8>) {
        match self {
            Term::Start(register) => {
                into.push(gimli::DW_OP_bregx.0);
                leb128(into, i64::from(*register));
                leb128(into, 0);
            }
            Term::Plus(of, offset) => {
                of.code(into);
                into.push(gimli::DW_OP_consts.0);
                leb128(into, *offset);
                into.push(gimli::DW_OP_plus.0);
            }
            Term::Minus(a, b) => {
                a.code(into);
                b.code(into);
                into.push(gimli::DW_OP_minus.0);
            }
            Term::Load(of) => {
                of.code(into);
                into.push(gimli::DW_OP_deref.0);
            }
        }
    }

    fn expression(&self) -> Box<[u8]> {
        let mut code = Vec::new();
        self.code(&mut code);
        code.into()
    }
}

/// A signed number as DWARF writes it; one from 0 to 63 reads the same unsigned.
fn leb128(into: &mut Vec<u8>, mut value: i64) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if (value == 0 && byte & 0x40 == 0) || (value == -1 && byte & 0x40 != 0) {
            return into.push(byte);
        }
        into.push(byte | 0x80);
    }
}

fn plus(value: &Value, offset: i64) -> Value {
    let value = value.as_ref()?;
    if offset == 0 {
        return Some(Rc::clone(value));
    }
    match &**value {
        Term::Plus(of, other) => match other.wrapping_add(offset) {
            0 => Some(Rc::clone(of)),
            sum => Some(Rc::new(Term::Plus(Rc::clone(of), sum))),
        },
        _ => bounded(Term::Plus(Rc::clone(value), offset)),
    }
}

fn bounded(term: Term) -> Value {
    (term.depth() <= MAX_DEPTH).then(|| Rc::new(term))
}

/// The machine at one place of a path.
#[derive(Clone)]
struct State {
    registers: [Value; 16],
    /// Words written, by address; the last one holds.
    stores: Vec<(Rc<Term>, Value)>,
}

impl State {
    fn new() -> State {
        State {
            registers: std::array::from_fn(|register| Some(Rc::new(Term::Start(register as u16)))),
            stores: Vec::new(),
        }
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
        let segment = instruction.memory_segment();
        let base = match instruction.memory_base() {
            Register::None if segment == Register::FS => Some(Rc::new(Term::Start(dwarf::FS_BASE))),
            _ if matches!(segment, Register::FS | Register::GS) => None,
            base => self.get(number(base)?),
        };
        plus(&base, instruction.memory_displacement64().cast_signed())
    }

    /// What an operand of eight bytes holds.
    fn operand(&self, instruction: &Instruction, operand: u32) -> Value {
        match instruction.op_kind(operand) {
            OpKind::Register => self.get(number(instruction.op_register(operand))?),
            OpKind::Memory => self.load(&self.address(instruction)),
            _ => None,
        }
    }

    /// Does what an instruction does, as far as it can be told.
    fn execute(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) {
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
    fn returning_rule(&self, instruction: &Instruction) -> Option<General> {
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
    fn entered_rule(&self) -> Option<General> {
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

/// A reading of code, path by path.
struct Reading<'a> {
    fetch: Fetch<'a>,
    window: [u8; WINDOW],
    begin: u64,
    length: usize,
    info: InstructionInfoFactory,
}

impl<'a> Reading<'a> {
    fn of(fetch: Fetch<'a>) -> Reading<'a> {
        Reading {
            fetch,
            window: [0; WINDOW],
            begin: 0,
            length: 0,
            info: InstructionInfoFactory::new(),
        }
    }

    /// Shows `seen` each instruction once, with the state before it, until it has seen enough.
    fn follow(&mut self, from: u64, mut seen: impl FnMut(&Instruction, &State) -> bool) {
        let mut visited = FxHashSet::default();
        let mut paths = vec![(from, State::new())];
        let mut left = MAX_INSTRUCTIONS;
        while let Some((mut pc, mut state)) = paths.pop() {
            while visited.insert(pc) && left > 0 {
                left -= 1;
                let Some(instruction) = self.decode(pc) else {
                    break;
                };
                if seen(&instruction, &state) {
                    return;
                }
                state.execute(&instruction, &mut self.info);
                if state.stores.len() > MAX_STORES {
                    break;
                }
                match instruction.flow_control() {
                    FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {
                        pc = instruction.next_ip();
                    }
                    FlowControl::UnconditionalBranch => pc = instruction.near_branch_target(),
                    FlowControl::ConditionalBranch => {
                        if paths.len() < MAX_PATHS {
                            paths.push((instruction.near_branch_target(), state.clone()));
                        }
                        pc = instruction.next_ip();
                    }
                    // Returns, indirect jumps, traps.
                    _ => break,
                }
                // Nothing but padding behind a call: it does not come back.
                if is_call(&instruction) && self.is_padding(pc) {
                    break;
                }
            }
        }
    }

    /// Whether functions are aligned here, and no instruction of this one follows.
    fn is_padding(&mut self, pc: u64) -> bool {
        let filler = |instruction: &Instruction| {
            matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
                || instruction.code() == Code::Xchg_r16_AX
        };
        let mut at = pc;
        while !at.is_multiple_of(16) {
            match self.decode(at) {
                Some(instruction) if filler(&instruction) => at = instruction.next_ip(),
                _ => return false,
            }
        }
        at != pc
    }

    fn decode(&mut self, pc: u64) -> Option<Instruction> {
        let inside = |begin: u64, length: usize| {
            let at = usize::try_from(pc.checked_sub(begin)?).ok()?;
            (at < length).then_some(at)
        };
        let mut at = inside(self.begin, self.length);
        if at.is_none_or(|at| at + LONGEST > self.length) {
            self.begin = pc;
            self.length = (self.fetch)(pc, &mut self.window).min(WINDOW);
            at = inside(self.begin, self.length);
        }
        let bytes = self.window.get(at?..self.length)?;
        let instruction = Decoder::with_ip(64, bytes, pc, DecoderOptions::NONE).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code at address 0x1000.
    fn code(bytes: &[u8]) -> impl FnMut(u64, &mut [u8]) -> usize {
        move |address, buf| {
            let at = address
                .checked_sub(0x1000)
                .map_or(usize::MAX, |at| at as usize);
            let rest = bytes.get(at..).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            n
        }
    }

    fn shown(rule: Option<General>) -> String {
        let Some(rule) = rule else {
            return "nothing".into();
        };
        let saved = rule
            .registers
            .iter()
            .map(|(r, saved)| format!(" r{r}={saved:?}"));
        let saved: String = saved.collect();
        format!("{:?} ra={:?}{saved}", rule.cfa, rule.return_address)
    }

    #[test]
    fn a_frame_is_the_same_from_both_ends() {
        let function = [
            0x53, // push %rbx
            0x55, // push %rbp
            0x48, 0x83, 0xec, 0x18, // sub $0x18,%rsp
            0x31, 0xdb, // xor %ebx,%ebx
            0x48, 0x89, 0xfd, // mov %rdi,%rbp
            0xe8, 0, 0, 0, 0, // call
            0x48, 0x83, 0xc4, 0x18, // add $0x18,%rsp
            0x5d, // pop %rbp
            0x5b, // pop %rbx
            0xc3, // ret
        ];
        let pc = 0x1010;
        assert_eq!(
            shown(from_start(&mut code(&function), 0x1000, pc, true)),
            "Register(7, 48) ra=AtCfa(-8) r3=AtCfa(-16) r6=AtCfa(-24)"
        );
        assert_eq!(
            shown(to_return(&mut code(&function), pc)),
            "Register(7, 48) ra=At(7, 40) r3=At(7, 32) r6=At(7, 24)"
        );
        // In between, a word more or less.
        assert_eq!(
            shown(from_start(&mut code(&function), 0x1000, 0x1001, false)),
            "Register(7, 16) ra=AtCfa(-8)"
        );
        assert_eq!(
            shown(to_return(&mut code(&function), 0x1015)),
            "Register(7, 16) ra=At(7, 8) r3=At(7, 0)"
        );
    }

    #[test]
    fn frame_pointers_find_what_the_stack_pointer_lost() {
        let function = [
            0x55, // push %rbp
            0x48, 0x89, 0xe5, // mov %rsp,%rbp
            0x48, 0x83, 0xe4, 0xe0, // and $-32,%rsp
            0xff, 0xd0, // call *%rax
            0xc9, // leave
            0xc3, // ret
        ];
        assert_eq!(
            shown(from_start(&mut code(&function), 0x1000, 0x100a, true)),
            "Register(6, 16) ra=AtCfa(-8) r6=AtCfa(-16)"
        );
        assert_eq!(
            shown(to_return(&mut code(&function), 0x100a)),
            "Register(6, 16) ra=At(6, 8) r6=At(6, 0)"
        );
    }

    #[test]
    fn what_does_not_return_says_nothing() {
        // call; ud2 — call, padding, and the next function — a loop.
        for endless in [
            &[0xe8, 0, 0, 0, 0, 0x0f, 0x0b][..],
            &[
                0xe8, 0, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
                0xc3,
            ],
            &[0x90, 0xeb, 0xfd],
        ] {
            assert_eq!(shown(to_return(&mut code(endless), 0x1000)), "nothing");
        }
    }

    #[test]
    fn calls_are_told_from_other_bytes() {
        assert!(ends_with_call(&[0, 0, 0, 0xe8, 1, 2, 3, 4]));
        assert!(ends_with_call(&[0, 0, 0, 0, 0, 0, 0xff, 0xd0]));
        assert!(ends_with_call(&[0, 0, 0, 0, 0, 0x41, 0xff, 0xd3]));
        assert!(ends_with_call(&[0, 0, 0xff, 0x15, 1, 2, 3, 4]));
        assert!(!ends_with_call(&[0, 0, 0, 0, 0, 0, 0, 0xc3]));
        assert!(!ends_with_call(&[0x90; 8]));
    }

    #[test]
    fn any_bytes_are_read_to_some_end() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..2000 {
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .take(512)
            .collect();
            shown(to_return(&mut code(&bytes), 0x1000));
            shown(from_start(&mut code(&bytes), 0x1000, 0x1100, false));
            exits(&mut code(&bytes), 0x1000);
            end_of(&mut code(&bytes), 0x1000);
        }
    }
}
