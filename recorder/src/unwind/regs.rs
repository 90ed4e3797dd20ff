//! A thread's registers as unwinding needs them: the sixteen general ones, numbered as DWARF numbers
//! them, and the instruction pointer.
//!
//! It does not read them: the tracer does, and converts.

/// DWARF's numbers of the registers that have a part of their own to play.
pub mod dwarf {
    /// `rbx`.
    pub const RBX: usize = 3;
    /// `rbp`.
    pub const RBP: usize = 6;
    /// `rsp`.
    pub const RSP: usize = 7;
    /// `r12`; `r13` to `r15` follow.
    pub const R12: usize = 12;
    /// The column of the return address, which stands for `rip`.
    pub const RA: u16 = 16;
    /// The base of segment `fs`: where a thread's own storage is.
    pub const FS_BASE: u16 = 58;
}

/// General registers and instruction pointer of a stopped thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// In DWARF's order: rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15.
    pub gpr: [u64; 16],
    /// The instruction pointer.
    pub rip: u64,
    /// The base of segment `fs`; 0 if it is not known.
    pub fs_base: u64,
    /// Which of `gpr` are known, a bit each. A stack that needs others comes out truncated.
    pub known: u16,
    /// Whether `rip` is the instruction that comes next, wherever the thread was interrupted, and not what
    /// follows a call: a system call is one.
    pub interrupted: bool,
}

impl Regs {
    /// Stack pointer and instruction pointer alone: enough for most stacks.
    #[must_use]
    pub fn pointers(rsp: u64, rip: u64) -> Regs {
        let mut gpr = [0; 16];
        gpr[dwarf::RSP] = rsp;
        Regs {
            gpr,
            rip,
            known: 1 << dwarf::RSP,
            ..Regs::default()
        }
    }

    /// Whether all are known.
    #[must_use]
    pub fn are_all_known(&self) -> bool {
        self.known == u16::MAX
    }

    /// The stack pointer.
    #[must_use]
    pub fn rsp(&self) -> u64 {
        self.gpr[dwarf::RSP]
    }
}

impl From<&libc::user_regs_struct> for Regs {
    fn from(r: &libc::user_regs_struct) -> Regs {
        Regs {
            gpr: [
                r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
                r.r12, r.r13, r.r14, r.r15,
            ],
            rip: r.rip,
            fs_base: r.fs_base,
            known: u16::MAX,
            interrupted: false,
        }
    }
}
