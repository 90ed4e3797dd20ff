//! The table of memory calls: number per ABI, name, what each argument is, what it does to a space.
//!
//! The filter, the decoding, the printing and the replay all derive from it. It knows nothing of
//! flag names (printing has them) and nothing of how a stop is made.

use Arg::{
    Addr, Advice, ArchPrctlCode, Fd, Int, Len, MapFlags, Mlock2Flags, MlockallFlags, Offset,
    OffsetPages, Pkey, PrctlOption, Prot, RemapFlags, ShadowStackFlags, ShmFlags, ShmId, Unsigned,
};

/// The bit that marks a number as x32's in `orig_rax`.
pub const X32_BIT: u32 = 0x4000_0000;

/// i386 `ipc`, through which old programs reach `shmat` and `shmdt`. It is not a [`Call`]: the
/// recorder looks at its first argument and turns the call into [`Call::Shmat`] or [`Call::Shmdt`].
pub const I386_IPC: u32 = 117;
/// First argument of [`I386_IPC`] (its low 16 bits): this is a `shmat`.
pub const IPC_SHMAT: u32 = 21;
/// First argument of [`I386_IPC`] (its low 16 bits): this is a `shmdt`.
pub const IPC_SHMDT: u32 = 22;

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

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which call.
    pub call: Call,
    /// Its name as strace prints it.
    pub name: &'static str,
    /// Its number in 64-bit code.
    pub x86_64: Option<u32>,
    /// Its number through `int 0x80` and `sysenter`.
    pub i386: Option<u32>,
    /// Its number in x32 code, **without** [`X32_BIT`].
    pub x32: Option<u32>,
    /// Its arguments, in order.
    pub args: &'static [Arg],
    /// What it does to a space.
    pub effect: Effect,
}

const fn row(
    call: Call,
    name: &'static str,
    numbers: [Option<u32>; 3],
    args: &'static [Arg],
    effect: Effect,
) -> Row {
    Row {
        call,
        name,
        x86_64: numbers[0],
        i386: numbers[1],
        x32: numbers[2],
        args,
        effect,
    }
}

/// Numbers of a call that every ABI has; x32's is nearly always that of 64-bit code.
const fn nrs(x86_64: u32, i386: u32) -> [Option<u32>; 3] {
    [Some(x86_64), Some(i386), Some(x86_64)]
}

/// All rows, in the order of [`Call`]'s discriminants.
pub const TABLE: [Row; 24] = [
    row(
        Call::Mmap,
        "mmap",
        [Some(9), None, Some(9)],
        &[Addr, Len, Prot, MapFlags, Fd, Offset],
        Effect::Map,
    ),
    row(
        Call::OldMmap,
        "old_mmap",
        [None, Some(90), None],
        &[Addr, Len, Prot, MapFlags, Fd, Offset],
        Effect::Map,
    ),
    row(
        Call::Mmap2,
        "mmap2",
        [None, Some(192), None],
        &[Addr, Len, Prot, MapFlags, Fd, OffsetPages],
        Effect::Map,
    ),
    row(
        Call::Munmap,
        "munmap",
        nrs(11, 91),
        &[Addr, Len],
        Effect::Unmap,
    ),
    row(
        Call::Mremap,
        "mremap",
        nrs(25, 163),
        &[Addr, Len, Len, RemapFlags, Addr],
        Effect::Remap,
    ),
    row(Call::Brk, "brk", nrs(12, 45), &[Addr], Effect::Brk),
    row(
        Call::Mprotect,
        "mprotect",
        nrs(10, 125),
        &[Addr, Len, Prot],
        Effect::Protect,
    ),
    row(
        Call::PkeyMprotect,
        "pkey_mprotect",
        nrs(329, 380),
        &[Addr, Len, Prot, Pkey],
        Effect::Protect,
    ),
    row(
        Call::Madvise,
        "madvise",
        nrs(28, 219),
        &[Addr, Len, Advice],
        Effect::Advise,
    ),
    row(
        Call::ProcessMadvise,
        "process_madvise",
        nrs(440, 440),
        &[Fd, Addr, Unsigned, Advice, Unsigned],
        Effect::Advise,
    ),
    row(
        Call::Shmat,
        "shmat",
        nrs(30, 397),
        &[ShmId, Addr, ShmFlags],
        Effect::Look,
    ),
    row(Call::Shmdt, "shmdt", nrs(67, 398), &[Addr], Effect::Detach),
    row(
        Call::RemapFilePages,
        "remap_file_pages",
        nrs(216, 257),
        &[Addr, Len, Prot, OffsetPages, MapFlags],
        Effect::Look,
    ),
    row(
        Call::Mlock,
        "mlock",
        nrs(149, 150),
        &[Addr, Len],
        Effect::Advise,
    ),
    row(
        Call::Mlock2,
        "mlock2",
        nrs(325, 376),
        &[Addr, Len, Mlock2Flags],
        Effect::Advise,
    ),
    row(
        Call::Munlock,
        "munlock",
        nrs(150, 151),
        &[Addr, Len],
        Effect::Advise,
    ),
    row(
        Call::Mlockall,
        "mlockall",
        nrs(151, 152),
        &[MlockallFlags],
        Effect::Advise,
    ),
    row(
        Call::Munlockall,
        "munlockall",
        nrs(152, 153),
        &[],
        Effect::Advise,
    ),
    row(
        Call::MapShadowStack,
        "map_shadow_stack",
        nrs(453, 453),
        &[Addr, Len, ShadowStackFlags],
        Effect::Look,
    ),
    row(
        Call::Mseal,
        "mseal",
        nrs(462, 462),
        &[Addr, Len, Unsigned],
        Effect::Advise,
    ),
    row(
        Call::IoSetup,
        "io_setup",
        [Some(206), Some(245), Some(543)],
        &[Unsigned, Addr],
        Effect::Look,
    ),
    // The context id is the address of the ring that io_setup mapped.
    row(
        Call::IoDestroy,
        "io_destroy",
        nrs(207, 246),
        &[Addr],
        Effect::Detach,
    ),
    row(
        Call::Prctl,
        "prctl",
        nrs(157, 172),
        &[PrctlOption, Int, Addr, Len, Addr],
        Effect::Advise,
    ),
    row(
        Call::ArchPrctl,
        "arch_prctl",
        nrs(158, 384),
        &[ArchPrctlCode, Addr],
        Effect::Look,
    ),
];

/// Marks a number that is no memory call.
const NO_CALL: u8 = u8::MAX;
/// Numbers end below this; the look-up table has as many entries an ABI.
const NUMBERS: usize = 548;
/// The table turned round: ABI and number to the index in [`TABLE`].
static BY_NUMBER: [[u8; NUMBERS]; 3] = by_number();

const fn by_number() -> [[u8; NUMBERS]; 3] {
    let mut out = [[NO_CALL; NUMBERS]; 3];
    let mut i = 0;
    while i < TABLE.len() {
        let numbers = [TABLE[i].x86_64, TABLE[i].i386, TABLE[i].x32];
        let mut abi = 0;
        while abi < 3 {
            if let Some(nr) = numbers[abi] {
                out[abi][nr as usize] = i as u8;
            }
            abi += 1;
        }
        i += 1;
    }
    out
}

impl Abi {
    /// All of them.
    pub const ALL: [Abi; 3] = [Abi::X86_64, Abi::I386, Abi::X32];

    /// The ABI with this discriminant.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Abi> {
        Abi::ALL.get(usize::from(value)).copied()
    }

    /// The word used in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Abi::X86_64 => "x86_64",
            Abi::I386 => "i386",
            Abi::X32 => "x32",
        }
    }
}

impl Call {
    /// All calls, in the order of their discriminants.
    pub const ALL: [Call; TABLE.len()] = {
        let mut all = [Call::Mmap; TABLE.len()];
        let mut i = 0;
        while i < TABLE.len() {
            all[i] = TABLE[i].call;
            i += 1;
        }
        all
    };

    /// Its row of the table.
    #[must_use]
    pub fn row(self) -> &'static Row {
        static ROWS: [Row; TABLE.len()] = TABLE;
        &ROWS[self as usize]
    }

    /// Its name as strace prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Its number in an ABI as a filter sees it: x32's with [`X32_BIT`].
    #[must_use]
    pub fn number(self, abi: Abi) -> Option<u32> {
        let row = self.row();
        match abi {
            Abi::X86_64 => row.x86_64,
            Abi::I386 => row.i386,
            Abi::X32 => row.x32.map(|nr| nr | X32_BIT),
        }
    }

    /// What its arguments are, in order.
    #[must_use]
    pub fn args(self) -> &'static [Arg] {
        self.row().args
    }

    /// What it does to a space.
    #[must_use]
    pub fn effect(self) -> Effect {
        self.row().effect
    }

    /// The memory call with this number, if it is one. `nr` is `orig_rax`: the kernel looks at its
    /// low 32 bits only, and so does this; x32's numbers have [`X32_BIT`] set.
    #[must_use]
    pub fn from_number(abi: Abi, nr: u64) -> Option<Call> {
        let nr = nr as u32;
        let nr = if abi == Abi::X32 { nr ^ X32_BIT } else { nr };
        let index = *BY_NUMBER[abi as usize].get(nr as usize)?;
        Call::from_u8(index)
    }

    /// The call with this discriminant.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Call> {
        Call::ALL.get(usize::from(value)).copied()
    }
}
