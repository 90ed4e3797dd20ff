//! The seccomp filter, as a pure function from the table of calls to a BPF program.
//!
//! It answers RET_TRACE for memory calls in all three ABIs and lets everything else through. For
//! all but five calls its answer depends on number and architecture alone, so that the kernel
//! (5.11 and later) serves them from a bitmap without running the program. The five look at an
//! argument as well, because stopping at each of them would be waste: `prctl`, `arch_prctl` and
//! i386 `ipc` (most of what they do maps nothing), `clone` (only CLONE_UNTRACED concerns us),
//! `ptrace` (only attempts to become a tracer do). `clone3` hides its flags in memory, so it stops
//! always.

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_TRACE, sock_filter,
};
use maptrail_tracelog::calls::{Abi, Call, I386_IPC, IPC_SHMAT, IPC_SHMDT, X32_BIT};

use crate::sys::ptrace::{AUDIT_ARCH_I386, AUDIT_ARCH_X86_64};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low half of the first argument; on a little-endian machine it comes first.
const ARG0: u32 = 16;

/// What the filter gives with each stop, to tell it from the stops of a filter of the program's own.
pub const DATA: u32 = 0x4d54;
const TRACE: u32 = SECCOMP_RET_TRACE | DATA;

/// `CLONE_UNTRACED`: the child would not be traced, and the filter would fail its memory calls.
pub const CLONE_UNTRACED: u64 = 0x0080_0000;

/// Calls that are not memory calls and that the tracer must see all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// `clone`: flags in a register (the first on every ABI).
    Clone,
    /// `clone3`: flags in memory.
    Clone3,
    /// `ptrace`.
    Ptrace,
}

impl Watched {
    const ALL: [Watched; 3] = [Watched::Clone, Watched::Clone3, Watched::Ptrace];

    /// Which of them a number is.
    #[must_use]
    pub fn from_number(abi: Abi, number: u64) -> Option<Watched> {
        Watched::ALL
            .into_iter()
            .find(|w| u64::from(w.number(abi)) == number & !u64::from(X32_BIT))
    }

    fn number(self, abi: Abi) -> u32 {
        match (self, abi) {
            (Watched::Clone, Abi::I386) => 120,
            (Watched::Clone, _) => 56,
            (Watched::Clone3, _) => 435,
            (Watched::Ptrace, Abi::I386) => 26,
            (Watched::Ptrace, Abi::X86_64) => 101,
            (Watched::Ptrace, Abi::X32) => 521,
        }
    }

    fn when(self) -> When {
        match self {
            Watched::Clone => When::FirstArgHas(CLONE_UNTRACED as u32),
            Watched::Clone3 => When::Always,
            // PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_SEIZE.
            Watched::Ptrace => When::FirstArgIs(&[0, 16, 0x4206]),
        }
    }
}

/// When a call is stopped at.
enum When {
    Always,
    /// The first argument equals one of these.
    FirstArgIs(&'static [u32]),
    /// Its lower half does.
    FirstHalfIs(&'static [u32]),
    /// The first argument has one of these bits.
    FirstArgHas(u32),
}

fn when(call: Call) -> When {
    match call {
        // PR_SET_VMA and PR_SET_MM.
        Call::Prctl => When::FirstArgIs(&[0x5356_4d41, 35]),
        // ARCH_MAP_VDSO_X32, _32, _64 and ARCH_SHSTK_ENABLE, _DISABLE.
        Call::ArchPrctl => When::FirstArgIs(&[0x2001, 0x2002, 0x2003, 0x5001, 0x5002]),
        _ => When::Always,
    }
}

/// The program. Some 200 instructions; the kernel allows 4096.
#[must_use]
pub fn program() -> Vec<sock_filter> {
    let x86_64 = section(Abi::X86_64);
    let x32 = section(Abi::X32);
    let i386 = section(Abi::I386);
    let mut p = vec![load(ARCH)];
    // A `goto` counts from the instruction after it.
    p.extend(if_equal_goto(AUDIT_ARCH_X86_64, 3));
    p.extend(if_equal_goto(AUDIT_ARCH_I386, 4 + x86_64.len() + x32.len()));
    p.push(ret(SECCOMP_RET_ALLOW));
    p.push(load(NUMBER));
    // The bit is tested before the numbers: x32 calls share the architecture of x86-64.
    p.push(jump(BPF_JSET, X32_BIT, 0, 1));
    p.push(goto(x86_64.len()));
    p.extend(x86_64);
    p.extend(x32);
    p.push(load(NUMBER));
    p.extend(i386);
    p
}

/// The tests of one ABI, with the number in the accumulator; ends in an answer.
fn section(abi: Abi) -> Vec<sock_filter> {
    let bit = if abi == Abi::X32 { X32_BIT } else { 0 };
    let calls = Call::ALL
        .iter()
        .filter_map(|&call| Some((call.number(abi)?, when(call))));
    let watched = Watched::ALL.iter().map(|w| (w.number(abi), w.when()));
    // The upper half is a version (sys_ipc in the kernel's ipc/syscall.c).
    let ipc = (abi == Abi::I386).then_some((I386_IPC, When::FirstHalfIs(&[IPC_SHMAT, IPC_SHMDT])));
    let mut p = Vec::new();
    for (number, when) in calls.chain(watched).chain(ipc) {
        let answer = match when {
            When::Always => vec![ret(TRACE)],
            When::FirstArgIs(values) => {
                let mut a = vec![load(ARG0)];
                a.extend(if_any_of(values));
                a
            }
            When::FirstHalfIs(values) => {
                let mut a = vec![
                    load(ARG0),
                    statement(BPF_ALU | BPF_AND | BPF_K, 0xffff, 0, 0),
                ];
                a.extend(if_any_of(values));
                a
            }
            When::FirstArgHas(bits) => vec![
                load(ARG0),
                jump(BPF_JSET, bits, 0, 1),
                ret(TRACE),
                ret(SECCOMP_RET_ALLOW),
            ],
        };
        p.push(jump(
            BPF_JEQ,
            number & !X32_BIT | bit,
            0,
            answer.len() as u8,
        ));
        p.extend(answer);
    }
    p.push(ret(SECCOMP_RET_ALLOW));
    p
}

/// Stops if the accumulator holds one of these.
fn if_any_of(values: &[u32]) -> Vec<sock_filter> {
    let mut p: Vec<sock_filter> = values
        .iter()
        .flat_map(|value| [jump(BPF_JEQ, *value, 0, 1), ret(TRACE)])
        .collect();
    p.push(ret(SECCOMP_RET_ALLOW));
    p
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

fn ret(answer: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, answer, 0, 0)
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    statement(BPF_JMP | test | BPF_K, k, jt, jf)
}

fn goto(over: usize) -> sock_filter {
    statement(BPF_JMP | BPF_JA, over as u32, 0, 0)
}

fn if_equal_goto(k: u32, over: usize) -> [sock_filter; 2] {
    [jump(BPF_JEQ, k, 0, 1), goto(over)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: a plain interpreter of the instructions used here.
    fn run(program: &[sock_filter], arch: u32, number: u32, arg0: u32) -> u32 {
        let (mut pc, mut acc) = (0usize, 0u32);
        loop {
            let i = program[pc];
            pc += 1;
            let code = u32::from(i.code);
            if code == BPF_LD | BPF_W | BPF_ABS {
                acc = match i.k {
                    NUMBER => number,
                    ARCH => arch,
                    ARG0 => arg0,
                    other => panic!("load of offset {other}"),
                };
            } else if code == BPF_ALU | BPF_AND | BPF_K {
                acc &= i.k;
            } else if code == BPF_RET | BPF_K {
                return i.k;
            } else if code == BPF_JMP | BPF_JA {
                pc += i.k as usize;
            } else {
                let taken = match code {
                    c if c == BPF_JMP | BPF_JEQ | BPF_K => acc == i.k,
                    c if c == BPF_JMP | BPF_JSET | BPF_K => acc & i.k != 0,
                    other => panic!("instruction {other:#x}"),
                };
                pc += usize::from(if taken { i.jt } else { i.jf });
            }
        }
    }

    fn arch(abi: Abi) -> u32 {
        match abi {
            Abi::I386 => AUDIT_ARCH_I386,
            Abi::X86_64 | Abi::X32 => AUDIT_ARCH_X86_64,
        }
    }

    #[test]
    fn every_number_of_every_abi_is_answered_by_the_table() {
        let p = program();
        for abi in [Abi::X86_64, Abi::I386, Abi::X32] {
            let bit = if abi == Abi::X32 { X32_BIT } else { 0 };
            for number in 0..1024u32 {
                let call = Call::from_number(abi, u64::from(number | bit));
                let plain = call.is_some_and(|c| matches!(when(c), When::Always));
                let clone3 = Watched::from_number(abi, u64::from(number)) == Some(Watched::Clone3);
                let expected = if plain || clone3 {
                    TRACE
                } else {
                    SECCOMP_RET_ALLOW
                };
                // An argument that none of the conditional calls asks for.
                let answer = run(&p, arch(abi), number | bit, 0x0001_0007);
                assert_eq!(answer, expected, "{abi:?} {number} {call:?}");
            }
        }
    }

    #[test]
    fn arguments_decide_where_they_must() {
        let p = program();
        let x64 = |number, arg0| run(&p, AUDIT_ARCH_X86_64, number, arg0) == TRACE;
        assert!(x64(157, 0x5356_4d41) && x64(157, 35));
        assert!(!x64(157, 15), "prctl(PR_SET_NAME) runs free");
        assert!(x64(56, CLONE_UNTRACED as u32 | 17));
        assert!(!x64(56, 17), "a plain clone runs free");
        assert!(
            x64(101, 0) && !x64(101, 7),
            "PTRACE_TRACEME, not PTRACE_CONT"
        );
        let i386 = |number, arg0| run(&p, AUDIT_ARCH_I386, number, arg0) == TRACE;
        assert!(i386(117, 21) && i386(117, 22) && !i386(117, 1));
        assert!(i386(117, 2 << 16 | 21), "shmat of another version");
    }

    #[test]
    fn an_unknown_architecture_runs_free() {
        assert_eq!(run(&program(), 0xc000_00b7, 9, 0), SECCOMP_RET_ALLOW);
    }
}
