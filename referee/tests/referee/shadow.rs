//! The stack of a single-stepped thread as its own calls and returns make it: true whatever anybody's
//! unwind information says.
//!
//! A call pushes the address behind it; a frame is left when the stack pointer passes that address's
//! slot, by a return, an exception or a `longjmp`. A signal pushes what it interrupted. A thread that goes
//! from one stack to another has one such list for each.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use maptrail_recorder::unwind::TargetMemory;

use super::target::Remote;

/// The most that the kernel puts on a stack for a signal, bytes.
const SIGNAL_FRAME: u64 = 32 << 10;
/// From the stack pointer at a signal handler's first instruction to the interrupted address: the return
/// address, and that far into `struct ucontext`.
const INTERRUPTED: u64 = 8 + 40 + 16 * 8;

/// What an instruction does to the stack of calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Call,
    /// It enters the kernel, which may put the stack pointer anywhere (`rt_sigreturn`).
    Syscall,
    /// It puts the stack pointer somewhere else altogether.
    Moves,
    /// It goes to the address on top of the stack.
    Return,
    Other,
}

/// One address that code will return to.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where it is stored.
    slot: u64,
    pc: u64,
}

/// One stack; the innermost entry is last.
#[derive(Default, Debug)]
struct Stack {
    entries: Vec<Entry>,
    /// The last stack pointer seen on it.
    rsp: u64,
    /// Nothing called its outermost entry.
    rooted: bool,
    /// What a signal handler on it has interrupted.
    interrupted: Option<usize>,
}

/// The calls of one thread.
pub struct Shadow {
    stacks: Vec<Stack>,
    current: usize,
    /// The instruction about to be executed.
    next: Kind,
    len: u64,
    rip: u64,
    /// Between an instruction that goes to another stack and the jump or return that ends the switch.
    switching: bool,
}

impl Shadow {
    /// A thread as it is now. `rooted` says that nobody has called it.
    pub fn new(regs: &libc::user_regs_struct, rooted: bool, memory: &mut Remote) -> Shadow {
        let mut shadow = Shadow {
            stacks: vec![Stack {
                rsp: regs.rsp,
                rooted,
                ..Stack::default()
            }],
            current: 0,
            next: Kind::Other,
            len: 0,
            rip: 0,
            switching: false,
        };
        shadow.look(regs.rip, memory);
        shadow
    }

    /// What the next instruction is.
    pub fn next(&self) -> Kind {
        self.next
    }

    /// Whether the thread is about to leave one stack for another.
    pub fn is_switching(&self) -> bool {
        self.switching
    }

    /// One instruction was executed.
    pub fn stepped(&mut self, regs: &libc::user_regs_struct, memory: &mut Remote) {
        let rsp = regs.rsp;
        let behind = self.rip.wrapping_add(self.len);
        if matches!(self.next, Kind::Moves | Kind::Syscall) {
            self.switching = self.moved(rsp, memory) && self.next == Kind::Moves;
        } else if regs.rip != behind {
            self.switching = false;
        }
        self.pop(rsp);
        // A call that faulted was not made.
        if self.next == Kind::Call && regs.rip != self.rip && memory.word(rsp) == Some(behind) {
            self.stack().entries.push(Entry {
                slot: rsp,
                pc: behind,
            });
        }
        self.look(regs.rip, memory);
    }

    /// A signal handler was entered.
    pub fn signalled(&mut self, regs: &libc::user_regs_struct, memory: &mut Remote) {
        let rsp = regs.rsp;
        let before = self.stack().rsp;
        if !(before.saturating_sub(SIGNAL_FRAME)..before).contains(&rsp) {
            let interrupted = Some(self.current);
            self.current = self.stacks.len();
            self.stacks.push(Stack {
                rsp,
                interrupted,
                ..Stack::default()
            });
        }
        self.pop(rsp);
        for slot in [rsp + INTERRUPTED, rsp] {
            let pc = memory.word(slot).unwrap_or_default();
            self.stack().entries.push(Entry { slot, pc });
        }
        self.look(regs.rip, memory);
    }

    /// The addresses that the thread will return to, innermost first, and whether that is all. An exception
    /// puts its landing pad where a return address was: what memory says counts.
    pub fn pcs(&self, memory: &mut Remote) -> (Vec<u64>, bool) {
        let mut pcs = Vec::new();
        let mut stack = &self.stacks[self.current];
        loop {
            if let Some(outermost) = stack.entries.first() {
                let base = stack.rsp;
                let mut bytes = vec![0; (outermost.slot - base + 8) as usize];
                let len = memory.read(base, &mut bytes);
                bytes.truncate(len);
                pcs.extend(stack.entries.iter().rev().map(|entry| {
                    let word = bytes.get((entry.slot - base) as usize..);
                    let word = word.and_then(|word| word.first_chunk());
                    word.map_or(entry.pc, |word| u64::from_le_bytes(*word))
                }));
            }
            match stack.interrupted {
                Some(index) => stack = &self.stacks[index],
                None => return (pcs, stack.rooted),
            }
        }
    }

    /// Whether no call on the current stack was seen that has not returned.
    pub fn is_empty(&self) -> bool {
        let stack = &self.stacks[self.current];
        stack.entries.is_empty() && stack.interrupted.is_none()
    }

    fn stack(&mut self) -> &mut Stack {
        &mut self.stacks[self.current]
    }

    /// Drops what was returned from.
    fn pop(&mut self, rsp: u64) {
        let stack = self.stack();
        while stack.entries.last().is_some_and(|entry| entry.slot < rsp) {
            stack.entries.pop();
        }
        stack.rsp = rsp;
    }

    /// The stack pointer was set. Returns whether to another stack.
    fn moved(&mut self, rsp: u64, memory: &mut Remote) -> bool {
        let holds = |stack: &Stack| {
            let top = stack.entries.first().map_or(stack.rsp, |entry| entry.slot);
            (stack.rsp..=top + 8).contains(&rsp)
        };
        if holds(self.stack()) {
            return false;
        }
        let known = (0..self.stacks.len()).rev().find(|&index| {
            let stack = &self.stacks[index];
            // A stack may have been used for something else since.
            let same = |entry: &Entry| memory.word(entry.slot) == Some(entry.pc);
            let live = |entry: &&Entry| entry.slot >= rsp;
            holds(stack) && stack.entries.iter().filter(live).all(same)
        });
        self.current = known.unwrap_or_else(|| {
            self.stacks.push(Stack {
                rsp,
                ..Stack::default()
            });
            self.stacks.len() - 1
        });
        true
    }

    fn look(&mut self, rip: u64, memory: &mut Remote) {
        let mut bytes = [0; 15];
        let len = memory.read(rip, &mut bytes);
        let instruction = Decoder::with_ip(64, &bytes[..len], rip, DecoderOptions::NONE).decode();
        self.rip = rip;
        self.len = instruction.len() as u64;
        self.next = kind(&instruction);
    }
}

fn kind(instruction: &Instruction) -> Kind {
    let sets_rsp = instruction.op0_kind() == OpKind::Register
        && instruction.op0_register() == Register::RSP
        || instruction.mnemonic() == Mnemonic::Xchg && instruction.op1_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Syscall => Kind::Syscall,
        Mnemonic::Call => Kind::Call,
        Mnemonic::Ret => Kind::Return,
        Mnemonic::Lea if instruction.memory_base() == Register::RSP => Kind::Other,
        Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Pop | Mnemonic::Xchg if sets_rsp => Kind::Moves,
        Mnemonic::Leave => Kind::Moves,
        _ => Kind::Other,
    }
}
