//! What to do at an address to get from a frame to its caller, compiled from CFI once and cached for
//! ever.
//!
//! A row of CFI nearly always says: the CFA (the caller's stack pointer) is a register plus a number,
//! the return address lies right below it, and some of six registers were saved at multiples of eight
//! bytes below that. Such a rule takes 24 bytes and no allocation; all others are kept beside.

use std::rc::Rc;

use gimli::{
    CfaRule, DebugFrame, EhFrame, Expression, LittleEndian, Operation, Register, RegisterRule,
    UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection, UnwindTableRow,
};
use maptrail_tracelog::types::ModuleId;
use rustc_hash::FxHashMap;

use super::cfi::{Entry, Kind, Slice};
use super::expression::ENCODING;
use super::memory::TargetMemory;
use super::modules::{GoCode, Modules, Read};
use super::reading;
use super::regs::dwarf;

/// The registers that a called function leaves as they were, `rsp` aside.
pub(super) const PRESERVED: [usize; 6] = [
    dwarf::RBX,
    dwarf::RBP,
    dwarf::R12,
    dwarf::R12 + 1,
    dwarf::R12 + 2,
    dwarf::R12 + 3,
];

/// How to get from a frame to its caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// There is no unwind information.
    Unknown,
    /// There is, and it cannot be understood.
    Bad,
    /// There is no caller.
    Root,
    /// The usual.
    Usual(Usual),
    /// The general one of this index.
    General(u32),
    /// There is no unwind information; the general one of this index was [read](super::reading) from the
    /// code itself.
    Read(u32),
}

impl Rule {
    /// Of functions that have no frame.
    pub const LEAF: Rule = Rule::Usual(Usual {
        cfa_register: dwarf::RSP as u8,
        cfa_offset: 8,
        saved: [0; 6],
    });
}

/// The return address at CFA-8; nothing but preserved registers saved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usual {
    /// CFA = this register (below 16) ...
    pub cfa_register: u8,
    /// ... plus this, bytes.
    pub cfa_offset: i32,
    /// Where [`PRESERVED`] were saved, in units of 8 bytes from the CFA; 0 for not at all.
    pub saved: [i16; 6],
}

/// Any rule.
#[derive(Debug)]
pub(super) struct General {
    pub entered: Entered,
    pub cfa: Cfa,
    pub return_address: Saved,
    /// Registers below 16 and their rules; those not named are unchanged.
    pub registers: Box<[(u8, Saved)]>,
}

/// How a frame's function came to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It was called.
    Call,
    /// It is the trampoline that the kernel lets a signal handler return to: its caller was
    /// interrupted, it did not call.
    Signal,
    /// Somebody put its first instruction on the stack as a return address, as `makecontext` does for
    /// what runs when a coroutine ends. What lies above is a caller only if it looks like one.
    Placed,
}

/// Where the CFA is.
#[derive(Debug)]
pub(super) enum Cfa {
    /// Register plus offset.
    Register(u16, i64),
    /// What lies in memory at register plus offset.
    Deref(u16, i64),
    /// The value of a DWARF expression.
    Expression(Box<[u8]>),
}

/// Where the caller's value of a register is.
#[derive(Debug)]
pub(super) enum Saved {
    Undefined,
    Same,
    /// In memory at CFA plus this.
    AtCfa(i64),
    /// It is CFA plus this.
    Cfa(i64),
    /// In a register.
    Register(u16),
    /// In memory at register plus offset.
    At(u16, i64),
    /// In memory where a DWARF expression says.
    Expression(Box<[u8]>),
    /// It is the value of a DWARF expression.
    Value(Box<[u8]>),
    /// It is this.
    Constant(u64),
}

/// Room for gimli to build rows: 16 nested DW_CFA_remember_state, however hostile the CFI.
struct Rows;

impl UnwindContextStorage<usize> for Rows {
    type Rules = [(Register, RegisterRule<usize>); 96];
    type Stack = Box<[UnwindTableRow<usize, Rows>; 16]>;
}

/// Slots of the table in front of the map of rules; a power of two.
const RECENT: usize = 2048;

/// Rules that are kept.
const MAX_KNOWN: usize = 1 << 18;

/// Rules of memory without a file that are kept; programs may write new code for ever.
const MAX_WITHOUT_FILE: usize = 1 << 16;

/// All rules met so far, by module and address.
pub(super) struct Rules {
    /// Rules met lately: one place for each, found without searching.
    recent: Box<[Recent; RECENT]>,
    known: FxHashMap<(ModuleId, u64), Rule>,
    /// Those in memory without a file, by address, and the code that they were read from.
    without_file: FxHashMap<u64, (Option<Rc<General>>, [u8; 16])>,
    general: Vec<General>,
    context: UnwindContext<usize, Rows>,
}

#[derive(Clone, Copy)]
struct Recent {
    svma: u64,
    /// `ModuleId(0)`, which has no rules, in an empty slot.
    module: ModuleId,
    rule: Rule,
}

impl Recent {
    const EMPTY: Recent = Recent {
        svma: 0,
        module: ModuleId(0),
        rule: Rule::Unknown,
    };
}

/// A rule before it is stored.
enum Compiled {
    Short(Rule),
    General(General),
}

impl Rules {
    pub fn new() -> Rules {
        Rules {
            recent: Box::new([Recent::EMPTY; RECENT]),
            known: FxHashMap::default(),
            without_file: FxHashMap::default(),
            general: Vec::new(),
            context: UnwindContext::new_in(),
        }
    }

    /// The rule at `svma` of a module: that of the instruction there, or, `after_call`, of the one that
    /// ends there.
    #[inline]
    pub fn at(
        &mut self,
        modules: &Modules,
        module: ModuleId,
        svma: u64,
        after_call: bool,
    ) -> &Rule {
        let slot = (svma ^ svma >> 11 ^ u64::from(module.0) << 5) as usize % RECENT;
        let recent = &self.recent[slot];
        if (recent.svma, recent.module) != (svma, module) {
            let rule = self.at_length(modules, module, svma, after_call);
            self.recent[slot] = Recent { svma, module, rule };
        }
        &self.recent[slot].rule
    }

    #[cold]
    fn at_length(
        &mut self,
        modules: &Modules,
        module: ModuleId,
        svma: u64,
        after_call: bool,
    ) -> Rule {
        if let Some(rule) = self.known.get(&(module, svma)) {
            return *rule;
        }
        // Code has an end, and calls fewer; but what lies on a stack may be anything.
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
            self.general.clear();
            self.recent.fill(Recent::EMPTY);
        }
        self.learn(modules, module, svma, after_call)
    }

    /// How code in memory without a file gets from `pc` to its caller, if it says so.
    pub fn without_file(&mut self, pc: u64, mem: &mut impl TargetMemory) -> Option<Rc<General>> {
        if let Some((rule, _)) = self.without_file.get(&pc) {
            return rule.clone();
        }
        let read = reading::to_return(&mut |addr, buf| mem.read(addr, buf), pc).map(Rc::new);
        if self.without_file.len() >= MAX_WITHOUT_FILE {
            self.without_file.clear();
        }
        (self.without_file).insert(pc, (read.clone(), code_at(pc, mem)));
        read
    }

    /// Forgets the rule at `pc` of memory without a file, where the code is not the same any more.
    pub fn check_without_file(&mut self, pc: u64, mem: &mut impl TargetMemory) {
        if let Some((_, code)) = self.without_file.get(&pc)
            && *code != code_at(pc, mem)
        {
            self.without_file.remove(&pc);
        }
    }

    fn keep(&mut self, general: General, as_rule: fn(u32) -> Rule) -> Rule {
        match u32::try_from(self.general.len()) {
            Ok(index) => {
                self.general.push(general);
                as_rule(index)
            }
            Err(_) => Rule::Bad,
        }
    }

    pub fn general(&self, index: u32) -> Option<&General> {
        self.general.get(index as usize)
    }

    fn learn(&mut self, modules: &Modules, module: ModuleId, svma: u64, after_call: bool) -> Rule {
        // The address is one before the return address. Where no function is, one may begin right behind.
        let behind = svma.saturating_add(1);
        let trampoline = || {
            // Before its first or its second instruction.
            let starts = match after_call {
                true => [behind; 3],
                false => [svma, svma.wrapping_sub(5), svma.wrapping_sub(7)],
            };
            let is_it = |start| {
                modules
                    .code_at(module, start)
                    .is_some_and(|c| is_sigreturn(&c))
            };
            starts.into_iter().any(is_it).then(sigreturn_rule)
        };
        let context = &mut self.context;
        let rule = if let Some(go) = modules.go_code(module, svma, after_call) {
            match (trampoline(), go) {
                (Some(Compiled::General(general)), _) => self.keep(general, Rule::General),
                (_, GoCode::Root) => Rule::Root,
                (_, GoCode::Frame(depth)) => go_rule(depth),
                (_, GoCode::Rule(general)) => self.keep(general, Rule::Read),
            }
        } else {
            let compiled = modules
                .cfi_at(module, svma, |entry| compile(entry, context, svma, false))
                .or_else(|| {
                    let placed = |entry: &Entry| compile(entry, context, behind, true);
                    let look = || modules.cfi_at(module, behind, placed);
                    after_call.then(look).flatten()
                })
                .or_else(trampoline);
            match compiled {
                Some(Compiled::Short(rule)) => rule,
                Some(Compiled::General(general)) => self.keep(general, Rule::General),
                None => match modules.read_code(module, svma, after_call) {
                    Read::Root => Rule::Root,
                    Read::Rule(general) => self.keep(general, Rule::Read),
                    Read::Nothing => Rule::Unknown,
                },
            }
        };
        self.known.insert((module, svma), rule);
        rule
    }
}

fn code_at(pc: u64, mem: &mut impl TargetMemory) -> [u8; 16] {
    let mut code = [0; 16];
    mem.read(pc, &mut code);
    code
}

/// The rule of a Go function whose return address lies so many bytes above the stack pointer. Functions
/// that have a frame keep the caller's frame pointer right below it.
fn go_rule(depth: u32) -> Rule {
    let Ok(cfa_offset) = i32::try_from(u64::from(depth) + 8) else {
        return Rule::Bad;
    };
    let mut saved = [0; 6];
    if depth >= 8 {
        saved[1] = -2;
    }
    Rule::Usual(Usual {
        cfa_register: dwarf::RSP as u8,
        cfa_offset,
        saved,
    })
}

/// `None` if the entry does not cover `svma`, or does not start there although it is the address of a
/// function that was [placed](Entered::Placed).
fn compile(
    entry: &Entry,
    context: &mut UnwindContext<usize, Rows>,
    svma: u64,
    placed: bool,
) -> Option<Compiled> {
    match entry.kind {
        Kind::EhFrame => {
            let section = EhFrame::new(&entry.bytes, LittleEndian);
            compile_in(&section, entry, context, svma, placed)
        }
        Kind::DebugFrame => {
            let mut section = DebugFrame::new(&entry.bytes, LittleEndian);
            section.set_address_size(8);
            compile_in(&section, entry, context, svma, placed)
        }
    }
}

fn compile_in<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    entry: &'a Entry,
    context: &mut UnwindContext<usize, Rows>,
    svma: u64,
    placed: bool,
) -> Option<Compiled> {
    let bases = &entry.bases;
    let fde = section
        .fde_from_offset(bases, S::Offset::from(entry.fde), S::cie_from_offset)
        .ok()?;
    if !fde.contains(svma) || (placed && fde.initial_address() != svma) {
        return None;
    }
    let Ok(row) = fde.unwind_info_for_address(section, bases, context, svma) else {
        return Some(Compiled::Short(Rule::Bad));
    };
    let return_address = fde.cie().return_address_register();
    let entered = if fde.is_signal_trampoline() {
        Entered::Signal
    } else if placed {
        Entered::Placed
    } else {
        Entered::Call
    };
    let compiled = compile_row(section, row, return_address, entered);
    Some(compiled.unwrap_or(Compiled::Short(Rule::Bad)))
}

fn compile_row<'a, S: UnwindSection<Slice<'a>>>(
    section: &S,
    row: &UnwindTableRow<usize, Rows>,
    return_address: Register,
    entered: Entered,
) -> Option<Compiled> {
    let ra_rule = row.register(return_address)?;
    if ra_rule == RegisterRule::Undefined {
        return Some(Compiled::Short(Rule::Root));
    }
    if entered == Entered::Call
        && let Some(usual) = usual(row, return_address)
    {
        return Some(Compiled::Short(Rule::Usual(usual)));
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => Cfa::Register(register.0, *offset),
        CfaRule::Expression(expression) => match short(expression, section)? {
            Short::Address(register, offset) => Cfa::Register(register, offset),
            Short::Deref(register, offset) => Cfa::Deref(register, offset),
            Short::No(code) => Cfa::Expression(code),
        },
    };
    let mut registers = Vec::new();
    for (register, rule) in row.registers() {
        if let Ok(number @ 0..16) = u8::try_from(register.0) {
            registers.push((number, saved(rule, section)?));
        }
    }
    Some(Compiled::General(General {
        entered,
        cfa,
        return_address: saved(&ra_rule, section)?,
        registers: registers.into(),
    }))
}

/// The row as a [`Usual`] rule, if it is one.
fn usual(row: &UnwindTableRow<usize, Rows>, return_address: Register) -> Option<Usual> {
    let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
        return None;
    };
    let mut usual = Usual {
        cfa_register: u8::try_from(register.0).ok().filter(|&r| r < 16)?,
        cfa_offset: i32::try_from(*offset).ok()?,
        saved: [0; 6],
    };
    for (register, rule) in row.registers() {
        match *rule {
            RegisterRule::Offset(-8) if *register == return_address => {}
            _ if *register == return_address => return None,
            // Vector registers and flags: no rule depends on them.
            _ if register.0 > 16 => {}
            RegisterRule::SameValue => {}
            RegisterRule::Offset(offset) if offset % 8 == 0 => {
                let preserved = PRESERVED
                    .iter()
                    .position(|&p| p == usize::from(register.0))?;
                let units = i16::try_from(offset / 8).ok().filter(|&units| units != 0)?;
                *usual.saved.get_mut(preserved)? = units;
            }
            _ => return None,
        }
    }
    Some(usual)
}

fn saved<'a, S: UnwindSection<Slice<'a>>>(
    rule: &RegisterRule<usize>,
    section: &S,
) -> Option<Saved> {
    Some(match rule {
        RegisterRule::Undefined => Saved::Undefined,
        RegisterRule::SameValue => Saved::Same,
        RegisterRule::Offset(offset) => Saved::AtCfa(*offset),
        RegisterRule::ValOffset(offset) => Saved::Cfa(*offset),
        RegisterRule::Register(register) => Saved::Register(register.0),
        RegisterRule::Expression(expression) => match short(expression, section)? {
            Short::Address(register, offset) => Saved::At(register, offset),
            Short::Deref(..) => Saved::Expression(code_of(expression, section)?),
            Short::No(code) => Saved::Expression(code),
        },
        RegisterRule::ValExpression(expression) => match short(expression, section)? {
            Short::Deref(register, offset) => Saved::At(register, offset),
            Short::Address(..) => Saved::Value(code_of(expression, section)?),
            Short::No(code) => Saved::Value(code),
        },
        RegisterRule::Constant(value) => Saved::Constant(*value),
        _ => return None,
    })
}

/// The two forms that compilers use most: `DW_OP_breg`, and that with a `DW_OP_deref` behind it.
enum Short {
    Address(u16, i64),
    Deref(u16, i64),
    No(Box<[u8]>),
}

fn short<'a, S: UnwindSection<Slice<'a>>>(
    expression: &UnwindExpression<usize>,
    section: &S,
) -> Option<Short> {
    let bytes = expression.get(section).ok()?.0;
    let mut operations = Expression(bytes).operations(ENCODING);
    let mut next = || operations.next().ok().flatten();
    let place = match next() {
        Some(Operation::RegisterOffset {
            register, offset, ..
        }) => Some((register.0, offset)),
        _ => None,
    };
    Some(match (place, next(), next()) {
        (Some((register, offset)), None, None) => Short::Address(register, offset),
        (
            Some((register, offset)),
            Some(Operation::Deref {
                size: 8,
                space: false,
                ..
            }),
            None,
        ) => Short::Deref(register, offset),
        _ => Short::No(bytes.slice().into()),
    })
}

fn code_of<'a, S: UnwindSection<Slice<'a>>>(
    expression: &UnwindExpression<usize>,
    section: &S,
) -> Option<Box<[u8]>> {
    Some(expression.get(section).ok()?.0.slice().into())
}

/// `mov $15, %rax` or `mov $15, %eax`, and `syscall`: a signal trampoline that its author gave no
/// unwind information (musl, Go).
fn is_sigreturn(code: &[u8; 9]) -> bool {
    *code == [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]
        || code.starts_with(&[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05])
}

/// At the trampoline `rsp` points to the kernel's `struct ucontext`, whose registers begin at 40 in
/// the order below.
fn sigreturn_rule() -> Compiled {
    const R8_TO_RSP: [u8; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7];
    let rsp = dwarf::RSP as u16;
    let place = |index: usize| 40 + 8 * index as i64;
    let registers = R8_TO_RSP
        .iter()
        .enumerate()
        .map(|(index, &register)| (register, Saved::At(rsp, place(index))));
    Compiled::General(General {
        entered: Entered::Signal,
        cfa: Cfa::Deref(rsp, place(15)),
        return_address: Saved::At(rsp, place(16)),
        registers: registers.collect(),
    })
}
