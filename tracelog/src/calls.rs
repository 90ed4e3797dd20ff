//! The table of memory calls: number per ABI, name, what each argument is, what it does to a space.
//!
//! The filter, the decoding, the printing and the replay all derive from it.

/// How a call entered the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Abi {
    /// `syscall` in 64-bit code.
    X86_64 = 0,
    /// `int 0x80` or `sysenter`, from 32-bit code or (`int 0x80`) from 64-bit code.
    I386 = 1,
    /// `syscall` with bit 30 set in the number.
    X32 = 2,
}

/// A memory call, whatever its ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the system call of its name")]
pub enum Call {
    Mmap = 0,
    /// i386 number 90: its six arguments lie in memory; the recorder fetches them.
    OldMmap,
    /// i386 number 192: the offset is in units of 4096 bytes.
    Mmap2,
    Munmap,
    Mremap,
    Brk,
    Mprotect,
    PkeyMprotect,
    Madvise,
    ProcessMadvise,
    /// Also through i386 `ipc`, whose arguments and result the recorder puts into this form.
    Shmat,
    /// Also through i386 `ipc`.
    Shmdt,
    RemapFilePages,
    Mlock,
    Mlock2,
    Munlock,
    Mlockall,
    Munlockall,
    MapShadowStack,
    Mseal,
    IoSetup,
    IoDestroy,
    /// PR_SET_VMA and PR_SET_MM only.
    Prctl,
    /// ARCH_MAP_VDSO_* and ARCH_SHSTK_* only.
    ArchPrctl,
}

/// What a successful call does to its space, and when (see the design's *acquire at exit, release at
/// entry*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Acquires at exit: the result is the start of a mapping described by the arguments. With
    /// MAP_FIXED it replaces what was there, at the same moment.
    Map,
    /// Releases `[arg0, arg0 + arg1)` at entry.
    Unmap,
    /// Releases the source at entry, acquires the destination at exit.
    Remap,
    /// The result is the new end of the heap: upwards an acquisition, downwards a release.
    Brk,
    /// Changes permissions, at exit.
    Protect,
    /// Acquires at exit what only a [`crate::record::Look`] can tell.
    Look,
    /// Releases, at entry, the whole mapping that begins at arg0.
    Detach,
    /// Changes nothing that maps shows.
    Advise,
}

/// What an argument is, for printing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is what its name says")]
pub enum Arg {
    Addr,
    Len,
    Prot,
    MapFlags,
    Fd,
    /// Bytes.
    Offset,
    /// Units of 4096 bytes.
    OffsetPages,
    RemapFlags,
    Advice,
    Mlock2Flags,
    MlockallFlags,
    ShmId,
    ShmFlags,
    Pkey,
    Int,
    Unsigned,
    PrctlOption,
    ArchPrctlCode,
    ShadowStackFlags,
}
