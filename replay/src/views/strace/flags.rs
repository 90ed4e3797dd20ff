//! The names of flags and constants that memory calls take, spelled and ordered as strace does.
//!
//! The only place in the program that knows these names. Values are those of x86 Linux.

use std::fmt::{self, Write};

/// A set of bits with names.
#[derive(Debug)]
pub struct Flags {
    /// What stands in `/* ... */` after a value without any known bit.
    unknown: &'static str,
    /// What 0 is called.
    zero: &'static str,
    /// Bit and name, in the order of printing.
    names: &'static [(u64, &'static str)],
}

/// A set of values with names.
#[derive(Debug)]
pub struct Values {
    /// What stands in `/* ... */` after an unknown value.
    unknown: &'static str,
    /// Value and name.
    names: &'static [(u64, &'static str)],
}

impl Flags {
    /// Writes `A|B|0x40`, or `0x40 /* X_??? */` where no bit is known.
    pub fn write(&self, out: &mut impl Write, value: u64) -> fmt::Result {
        if value == 0 {
            return out.write_str(self.zero);
        }
        let mut rest = value;
        for &(bit, name) in self.names {
            if rest & bit == bit {
                if rest != value {
                    out.write_char('|')?;
                }
                out.write_str(name)?;
                rest &= !bit;
            }
        }
        match rest {
            0 => Ok(()),
            _ if rest == value => write!(out, "{value:#x} /* {} */", self.unknown),
            _ => write!(out, "|{rest:#x}"),
        }
    }
}

impl Values {
    /// The name of a value, if it has one.
    #[must_use]
    pub fn name(&self, value: u64) -> Option<&'static str> {
        self.names
            .iter()
            .find(|&&(v, _)| v == value)
            .map(|&(_, name)| name)
    }

    /// Writes the name, or `0x63 /* X_??? */`.
    pub fn write(&self, out: &mut impl Write, value: u64) -> fmt::Result {
        match self.name(value) {
            Some(name) => out.write_str(name),
            None => write!(out, "{value:#x} /* {} */", self.unknown),
        }
    }
}

/// Protections.
pub const PROT: Flags = Flags {
    unknown: "PROT_???",
    zero: "PROT_NONE",
    names: &[
        (0x1, "PROT_READ"),
        (0x2, "PROT_WRITE"),
        (0x4, "PROT_EXEC"),
        (0x8, "PROT_SEM"),
        (0x0100_0000, "PROT_GROWSDOWN"),
        (0x0200_0000, "PROT_GROWSUP"),
    ],
};

/// The type of a mapping: the low four bits of mmap's flags.
const MAP_TYPE: Values = Values {
    unknown: "MAP_???",
    names: &[
        (0, "MAP_FILE"),
        (1, "MAP_SHARED"),
        (2, "MAP_PRIVATE"),
        (3, "MAP_SHARED_VALIDATE"),
        (8, "MAP_DROPPABLE"),
    ],
};

/// The other flags of mmap.
const MAP_REST: Flags = Flags {
    unknown: "MAP_???",
    zero: "",
    names: &[
        (0x10, "MAP_FIXED"),
        (0x20, "MAP_ANONYMOUS"),
        (0x40, "MAP_32BIT"),
        (0x4000, "MAP_NORESERVE"),
        (0x8000, "MAP_POPULATE"),
        (0x1_0000, "MAP_NONBLOCK"),
        (0x100, "MAP_GROWSDOWN"),
        (0x800, "MAP_DENYWRITE"),
        (0x1000, "MAP_EXECUTABLE"),
        (0x2000, "MAP_LOCKED"),
        (0x4_0000, "MAP_HUGETLB"),
        (0x2_0000, "MAP_STACK"),
        (0x8_0000, "MAP_SYNC"),
        (0x10_0000, "MAP_FIXED_NOREPLACE"),
    ],
};

const MAP_HUGE_SHIFT: u32 = 26;
const MAP_HUGE_MASK: u64 = 0x3f << MAP_HUGE_SHIFT;
const MAP_TYPE_MASK: u64 = 0xf;

/// Writes mmap's flags: the type, the bits, and the size of huge pages as `21<<MAP_HUGE_SHIFT`.
pub fn write_map_flags(out: &mut impl Write, value: u64) -> fmt::Result {
    MAP_TYPE.write(out, value & MAP_TYPE_MASK)?;
    let bits = value & !MAP_TYPE_MASK & !MAP_HUGE_MASK;
    if bits != 0 {
        out.write_char('|')?;
        // Without a known bit strace prints the bare number here.
        if MAP_REST.names.iter().any(|&(bit, _)| bits & bit == bit) {
            MAP_REST.write(out, bits)?;
        } else {
            write!(out, "{bits:#x}")?;
        }
    }
    match (value & MAP_HUGE_MASK) >> MAP_HUGE_SHIFT {
        0 => Ok(()),
        huge => write!(out, "|{huge}<<MAP_HUGE_SHIFT"),
    }
}

/// mremap: the destination address is an argument.
pub const MREMAP_FIXED: u64 = 2;

/// mremap's flags.
pub const MREMAP: Flags = Flags {
    unknown: "MREMAP_???",
    zero: "0",
    names: &[
        (1, "MREMAP_MAYMOVE"),
        (MREMAP_FIXED, "MREMAP_FIXED"),
        (4, "MREMAP_DONTUNMAP"),
    ],
};

/// madvise's advice.
pub const MADV: Values = Values {
    unknown: "MADV_???",
    names: &[
        (0, "MADV_NORMAL"),
        (1, "MADV_RANDOM"),
        (2, "MADV_SEQUENTIAL"),
        (3, "MADV_WILLNEED"),
        (4, "MADV_DONTNEED"),
        (8, "MADV_FREE"),
        (9, "MADV_REMOVE"),
        (10, "MADV_DONTFORK"),
        (11, "MADV_DOFORK"),
        (12, "MADV_MERGEABLE"),
        (13, "MADV_UNMERGEABLE"),
        (14, "MADV_HUGEPAGE"),
        (15, "MADV_NOHUGEPAGE"),
        (16, "MADV_DONTDUMP"),
        (17, "MADV_DODUMP"),
        (18, "MADV_WIPEONFORK"),
        (19, "MADV_KEEPONFORK"),
        (20, "MADV_COLD"),
        (21, "MADV_PAGEOUT"),
        (22, "MADV_POPULATE_READ"),
        (23, "MADV_POPULATE_WRITE"),
        (24, "MADV_DONTNEED_LOCKED"),
        (25, "MADV_COLLAPSE"),
        (100, "MADV_HWPOISON"),
        (101, "MADV_SOFT_OFFLINE"),
        (102, "MADV_GUARD_INSTALL"),
        (103, "MADV_GUARD_REMOVE"),
    ],
};

/// mlock2's flags.
pub const MLOCK2: Flags = Flags {
    unknown: "MLOCK_???",
    zero: "0",
    names: &[(1, "MLOCK_ONFAULT")],
};

/// mlockall's flags.
pub const MCL: Flags = Flags {
    unknown: "MCL_???",
    zero: "0",
    names: &[(1, "MCL_CURRENT"), (2, "MCL_FUTURE"), (4, "MCL_ONFAULT")],
};

/// shmat's flags.
pub const SHM: Flags = Flags {
    unknown: "SHM_???",
    zero: "0",
    names: &[
        (0o10_000, "SHM_RDONLY"),
        (0o20_000, "SHM_RND"),
        (0o40_000, "SHM_REMAP"),
        (0o100_000, "SHM_EXEC"),
    ],
};

/// map_shadow_stack's flags.
pub const SHADOW_STACK: Flags = Flags {
    unknown: "SHADOW_STACK_???",
    zero: "0",
    names: &[
        (1, "SHADOW_STACK_SET_TOKEN"),
        (2, "SHADOW_STACK_SET_MARKER"),
    ],
};

/// prctl: name anonymous memory.
pub const PR_SET_VMA: u64 = 0x5356_4d41;
/// prctl: change the bounds of the space that the kernel reports.
pub const PR_SET_MM: u64 = 35;

/// The options of prctl that change a space.
pub const PRCTL: Values = Values {
    unknown: "PR_???",
    names: &[(PR_SET_MM, "PR_SET_MM"), (PR_SET_VMA, "PR_SET_VMA")],
};

/// What PR_SET_VMA sets.
pub const PRCTL_VMA: Values = Values {
    unknown: "PR_SET_VMA_???",
    names: &[(0, "PR_SET_VMA_ANON_NAME")],
};

/// What PR_SET_MM sets.
pub const PRCTL_MM: Values = Values {
    unknown: "PR_SET_MM_???",
    names: &[
        (1, "PR_SET_MM_START_CODE"),
        (2, "PR_SET_MM_END_CODE"),
        (3, "PR_SET_MM_START_DATA"),
        (4, "PR_SET_MM_END_DATA"),
        (5, "PR_SET_MM_START_STACK"),
        (6, "PR_SET_MM_START_BRK"),
        (7, "PR_SET_MM_BRK"),
        (8, "PR_SET_MM_ARG_START"),
        (9, "PR_SET_MM_ARG_END"),
        (10, "PR_SET_MM_ENV_START"),
        (11, "PR_SET_MM_ENV_END"),
        (12, "PR_SET_MM_AUXV"),
        (13, "PR_SET_MM_EXE_FILE"),
        (14, "PR_SET_MM_MAP"),
        (15, "PR_SET_MM_MAP_SIZE"),
    ],
};

/// The codes of arch_prctl that change a space.
pub const ARCH_PRCTL: Values = Values {
    unknown: "ARCH_???",
    names: &[
        (0x2001, "ARCH_MAP_VDSO_X32"),
        (0x2002, "ARCH_MAP_VDSO_32"),
        (0x2003, "ARCH_MAP_VDSO_64"),
        (0x5001, "ARCH_SHSTK_ENABLE"),
        (0x5002, "ARCH_SHSTK_DISABLE"),
        (0x5003, "ARCH_SHSTK_LOCK"),
        (0x5004, "ARCH_SHSTK_UNLOCK"),
        (0x5005, "ARCH_SHSTK_STATUS"),
    ],
};
