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

mod machine;
mod term;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpKind, Register,
};
use rustc_hash::FxHashSet;

use super::rules::General;
use machine::State;

/// Instructions after which a reading is given up.
const MAX_INSTRUCTIONS: u32 = 10_000;
/// Places to go on at, kept while one path is followed.
const MAX_PATHS: usize = 64;
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
        // The call itself, or that of the kernel, changes nothing that the rule is made of.
        let calls = matches!(
            instruction.flow_control(),
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::Interrupt
        );
        let is_there = match after_call {
            true => calls && instruction.next_ip() == pc,
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
                if state.is_full() {
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
    use crate::unwind::rules::Cfa;

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
    fn another_stack_is_found_by_what_the_thread_keeps() {
        // Go, where it comes back from the system's stack, in programs that may lie anywhere.
        let switch = [
            0x48, 0xc7, 0xc1, 0xf8, 0xff, 0xff, 0xff, // mov $-8,%rcx
            0x64, 0x48, 0x8b, 0x01, // mov %fs:(%rcx),%rax
            0x48, 0x8b, 0x60, 0x38, // mov 0x38(%rax),%rsp
            0xc3, // ret
        ];
        let rule = to_return(&mut code(&switch), 0x1000).expect("a rule");
        let Cfa::Expression(found) = rule.cfa else {
            panic!("{:?}", rule.cfa);
        };
        let register = |register| (register == 58).then_some(0x7000);
        let memory = |at| match at {
            0x6ff8 => Some(0x5000),
            0x5038 => Some(0xc000),
            _ => None,
        };
        let cfa = super::super::expression::evaluate(&found, None, register, memory);
        assert_eq!(cfa, Some(0xc008));
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
