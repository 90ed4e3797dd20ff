//! One call as `strace -f -o FILE` prints it, so that eyes and scripts trained on strace work.
//!
//! What the log does not hold is printed as the bare argument: the vector of process_madvise and the
//! name that prctl gives (strace reads both from the program's memory), and io_setup's result
//! through its pointer. A later strace than 6.1 knows the names of newer flags too, as this does.

mod errno;
mod flags;

use std::fmt::{self, Write};

use maptrail_tracelog::calls::{Arg, Call};
use maptrail_tracelog::record::{CallEvent, Outcome};
use maptrail_tracelog::types::{PAGE, Tid};

pub use errno::errno;

/// The column in which strace lines up results.
const RESULT_COLUMN: usize = 40;

/// Writes the line of one call, without the line end.
///
/// # Errors
/// Those of the writer; a `String` has none.
pub fn write_line(out: &mut String, tid: Tid, event: &CallEvent) -> fmt::Result {
    let start = out.len();
    write!(out, "{:<5} ", tid.0)?;
    write_call(out, event)?;
    let column = out.len() - start;
    write!(
        out,
        "{:pad$}= ",
        "",
        pad = RESULT_COLUMN.saturating_sub(column)
    )?;
    write_result(out, event)
}

/// The call without thread and padding: `munmap(0x7f0000000000, 4096) = 0`.
#[must_use]
pub fn call_text(event: &CallEvent) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_call(&mut out, event)
        .and_then(|()| out.write_str("= "))
        .and_then(|()| write_result(&mut out, event));
    out
}

/// `munmap(0x7f0000000000, 4096) `, up to the result.
fn write_call(out: &mut String, event: &CallEvent) -> fmt::Result {
    write!(out, "{}(", name(event.call))?;
    write_args(out, event)?;
    if event.outcome == Outcome::Unfinished {
        out.write_str(" <unfinished ...>")?;
    }
    out.write_str(") ")
}

fn write_args(out: &mut String, event: &CallEvent) -> fmt::Result {
    match event.call {
        Call::Prctl => write_prctl(out, &event.args),
        call => {
            let kinds = shown(call, &event.args);
            for (i, (&kind, &value)) in kinds.iter().zip(&event.args).enumerate() {
                if i > 0 {
                    out.write_str(", ")?;
                }
                match (call, i) {
                    // Flags without names, and a number that is no pointer.
                    (Call::ProcessMadvise, 4)
                    | (Call::Mseal, 2)
                    | (Call::IoDestroy, 0)
                    | (Call::ArchPrctl, 1) => {
                        write_hex(out, value)?;
                    }
                    (Call::RemapFilePages, 3) => write!(out, "{value}")?,
                    _ => write_arg(out, kind, value)?,
                }
            }
            Ok(())
        }
    }
}

/// strace gives i386's old mmap the name of its successor.
fn name(call: Call) -> &'static str {
    match call {
        Call::OldMmap => Call::Mmap.name(),
        call => call.name(),
    }
}

/// The arguments that mean something: mremap has a destination only with MREMAP_FIXED.
fn shown(call: Call, args: &[u64; 6]) -> &'static [Arg] {
    let kinds = call.args();
    match (call, args) {
        (Call::Mremap, [_, _, _, flags, ..]) if flags & flags::MREMAP_FIXED == 0 => {
            kinds.get(..4).unwrap_or(kinds)
        }
        _ => kinds,
    }
}

fn write_arg(out: &mut String, kind: Arg, value: u64) -> fmt::Result {
    // The kernel takes these as `int`: it ignores the upper half, and so does strace.
    let int = value as i32;
    match kind {
        Arg::Addr => write_addr(out, value),
        Arg::Len | Arg::Unsigned => write!(out, "{value}"),
        Arg::Prot => flags::PROT.write(out, value),
        Arg::MapFlags => flags::write_map_flags(out, value),
        Arg::Fd | Arg::ShmId | Arg::Pkey | Arg::Int => write!(out, "{int}"),
        Arg::Offset => write_hex(out, value),
        Arg::OffsetPages => write_hex(out, value.wrapping_mul(PAGE)),
        Arg::RemapFlags => flags::MREMAP.write(out, value),
        Arg::Advice => flags::MADV.write(out, u64::from(value as u32)),
        Arg::Mlock2Flags => flags::MLOCK2.write(out, u64::from(value as u32)),
        Arg::MlockallFlags => flags::MCL.write(out, u64::from(value as u32)),
        Arg::ShmFlags => flags::SHM.write(out, u64::from(value as u32)),
        Arg::ShadowStackFlags => flags::SHADOW_STACK.write(out, u64::from(value as u32)),
        Arg::PrctlOption => flags::PRCTL.write(out, value),
        Arg::ArchPrctlCode => flags::ARCH_PRCTL.write(out, value),
    }
}

fn write_prctl(out: &mut String, args: &[u64; 6]) -> fmt::Result {
    let [option, what, a, b, c, _] = *args;
    let option = u64::from(option as u32);
    flags::PRCTL.write(out, option)?;
    out.write_str(", ")?;
    match option {
        flags::PR_SET_VMA => {
            flags::PRCTL_VMA.write(out, what)?;
            if flags::PRCTL_VMA.name(what).is_some() {
                out.write_str(", ")?;
                write_addr(out, a)?;
                write!(out, ", {b}, ")?;
                return write_addr(out, c);
            }
        }
        flags::PR_SET_MM => flags::PRCTL_MM.write(out, what)?,
        _ => write_hex(out, what)?,
    }
    for value in [a, b, c] {
        out.write_str(", ")?;
        write_hex(out, value)?;
    }
    Ok(())
}

fn write_addr(out: &mut String, value: u64) -> fmt::Result {
    match value {
        0 => out.write_str("NULL"),
        _ => write!(out, "{value:#x}"),
    }
}

/// As C's `%#lx`: 0 has no prefix.
fn write_hex(out: &mut String, value: u64) -> fmt::Result {
    match value {
        0 => out.write_str("0"),
        _ => write!(out, "{value:#x}"),
    }
}

fn write_result(out: &mut String, event: &CallEvent) -> fmt::Result {
    let Outcome::Returned(value) = event.outcome else {
        return out.write_str("?");
    };
    if let Some(number) = event.outcome.errno() {
        return match errno(number) {
            // Only a tracer sees these: the kernel restarts the call, or makes EINTR of them.
            Some((name, text)) if number >= 512 => write!(out, "? {name} ({text})"),
            Some((name, text)) => write!(out, "-1 {name} ({text})"),
            None => write!(out, "-1 (errno {number})"),
        };
    }
    match event.call {
        Call::Mmap
        | Call::OldMmap
        | Call::Mmap2
        | Call::Mremap
        | Call::Brk
        | Call::Shmat
        | Call::MapShadowStack => write_hex(out, value as u64),
        _ => write!(out, "{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maptrail_tracelog::calls::Abi;
    use maptrail_tracelog::types::{FileId, Nanos, SpaceId, StackId, Stamp, ThreadIx};

    fn line(call: Call, args: &[u64], result: Option<i64>) -> String {
        let mut six = [0; 6];
        for (to, from) in six.iter_mut().zip(args) {
            *to = *from;
        }
        let event = CallEvent {
            thread: ThreadIx(0),
            space: SpaceId(0),
            call,
            abi: Abi::X86_64,
            args: six,
            outcome: result.map_or(Outcome::Unfinished, Outcome::Returned),
            entry: Stamp(1),
            exit: Stamp(2),
            entry_ns: Nanos(0),
            exit_ns: Nanos(0),
            stack: StackId::NONE,
            file: FileId::ANON,
        };
        let mut out = String::new();
        write_line(&mut out, Tid(4768), &event).expect("strings take everything");
        out
    }

    const M1: u64 = u64::MAX;

    /// Each expectation is a line that strace 6.1 printed for the call on a live kernel.
    #[test]
    fn lines_are_those_of_strace() {
        use Call::*;
        #[rustfmt::skip]
        let cases: &[(Call, &[u64], i64, &str)] = &[
            (Brk, &[0], 0x5636_d198_0000, "4768  brk(NULL)                         = 0x5636d1980000"),
            (Brk, &[1], 0x5636_d198_1000, "4768  brk(0x1)                          = 0x5636d1981000"),
            (Mmap, &[0, 8192, 3, 0x22, M1, 0], 0x7ff6_b164_9000, "4768  mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ff6b1649000"),
            (Mmap, &[0x7ff6_b148_4000, 1_400_832, 5, 0x812, 3, 0x26000], 0x7ff6_b148_4000, "4768  mmap(0x7ff6b1484000, 1400832, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED|MAP_DENYWRITE, 3, 0x26000) = 0x7ff6b1484000"),
            (Mmap, &[0, 4096, 0, 0x8_0003, 3, 0], -95, "4768  mmap(NULL, 4096, PROT_NONE, MAP_SHARED_VALIDATE|MAP_SYNC, 3, 0) = -1 EOPNOTSUPP (Operation not supported)"),
            (Mmap, &[0x7ff6_b144_b000, 4096, 7, 0x3_f932, M1, 0], 0x7ff6_b144_b000, "4768  mmap(0x7ff6b144b000, 4096, PROT_READ|PROT_WRITE|PROT_EXEC, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS|MAP_NORESERVE|MAP_POPULATE|MAP_NONBLOCK|MAP_GROWSDOWN|MAP_DENYWRITE|MAP_EXECUTABLE|MAP_LOCKED|MAP_STACK, -1, 0) = 0x7ff6b144b000"),
            (Mmap, &[0, 2_097_152, 3, 0x5404_0022, M1, 0], -12, "4768  mmap(NULL, 2097152, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT, -1, 0) = -1 ENOMEM (Cannot allocate memory)"),
            (Mmap, &[0, 0, 0x100_0003, 0, M1, 1], -22, "4768  mmap(NULL, 0, PROT_READ|PROT_WRITE|PROT_GROWSDOWN, MAP_FILE, -1, 0x1) = -1 EINVAL (Invalid argument)"),
            (Mmap, &[0, 4096, 1, 0x4000_0002, 5, 0], -9, "4768  mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|16<<MAP_HUGE_SHIFT, 5, 0) = -1 EBADF (Bad file descriptor)"),
            (Mmap, &[0, 4096, 1, 0x80_00a2, 0x1_ffff_ffff, 4096_u64.wrapping_neg()], 0x7ff6_b164_6000, "4768  mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|0x800080, -1, 0xfffffffffffff000) = 0x7ff6b1646000"),
            (OldMmap, &[0, 4096, 3, 0x22, 0xffff_ffff, 0], 0xf7f9_8000, "4768  mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0xf7f98000"),
            (Mmap2, &[0, 8192, 3, 2, 77, 3], -9, "4768  mmap2(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE, 77, 0x3000) = -1 EBADF (Bad file descriptor)"),
            (Munmap, &[0x7ff6_b144_b000, 4096], 0, "4768  munmap(0x7ff6b144b000, 4096)      = 0"),
            (Munmap, &[0xffff_ffff_ffff_f000, M1], -22, "4768  munmap(0xfffffffffffff000, 18446744073709551615) = -1 EINVAL (Invalid argument)"),
            (Mremap, &[0x7ff6_b144_c000, 4096, 8192, 1, 77], 0x7ff6_b164_4000, "4768  mremap(0x7ff6b144c000, 4096, 8192, MREMAP_MAYMOVE) = 0x7ff6b1644000"),
            (Mremap, &[0x7ff6_b144_b000, 4096, 8192, 7, 0x7ff6_b144_b000], -22, "4768  mremap(0x7ff6b144b000, 4096, 8192, MREMAP_MAYMOVE|MREMAP_FIXED|MREMAP_DONTUNMAP, 0x7ff6b144b000) = -1 EINVAL (Invalid argument)"),
            (Mremap, &[0x7ff6_b144_b000, 4096, 8192, 0], -12, "4768  mremap(0x7ff6b144b000, 4096, 8192, 0) = -1 ENOMEM (Cannot allocate memory)"),
            (Mremap, &[0x7ff6_b144_b000, 4096, 8192, 0x18], -22, "4768  mremap(0x7ff6b144b000, 4096, 8192, 0x18 /* MREMAP_??? */) = -1 EINVAL (Invalid argument)"),
            (Mprotect, &[0x7ff6_b144_b000, 4096, 0x30], -22, "4768  mprotect(0x7ff6b144b000, 4096, 0x30 /* PROT_??? */) = -1 EINVAL (Invalid argument)"),
            (PkeyMprotect, &[0x7ff6_b144_b000, 4096, 3, M1], 0, "4768  pkey_mprotect(0x7ff6b144b000, 4096, PROT_READ|PROT_WRITE, -1) = 0"),
            (Madvise, &[0x7ff6_b144_d000, 0, 4], 0, "4768  madvise(0x7ff6b144d000, 0, MADV_DONTNEED) = 0"),
            (Madvise, &[0x7ff6_b144_d000, 0, M1], -22, "4768  madvise(0x7ff6b144d000, 0, 0xffffffff /* MADV_??? */) = -1 EINVAL (Invalid argument)"),
            (Shmat, &[0, 0, 0o110_000], 0x7ff6_b164_2000, "4768  shmat(0, NULL, SHM_RDONLY|SHM_EXEC) = 0x7ff6b1642000"),
            (Shmat, &[M1, 0, 0x10_0000], -22, "4768  shmat(-1, NULL, 0x100000 /* SHM_??? */) = -1 EINVAL (Invalid argument)"),
            (Shmdt, &[0x7ff6_b164_2000], 0, "4768  shmdt(0x7ff6b1642000)             = 0"),
            (RemapFilePages, &[0x7ff6_b144_b000, 4096, 3, 1, 0x10000], -22, "4768  remap_file_pages(0x7ff6b144b000, 4096, PROT_READ|PROT_WRITE, 1, MAP_FILE|MAP_NONBLOCK) = -1 EINVAL (Invalid argument)"),
            (Mlock2, &[0x7ff6_b144_b000, 4096, 3], -22, "4768  mlock2(0x7ff6b144b000, 4096, MLOCK_ONFAULT|0x2) = -1 EINVAL (Invalid argument)"),
            (Mlockall, &[7], 0, "4768  mlockall(MCL_CURRENT|MCL_FUTURE|MCL_ONFAULT) = 0"),
            (Mlockall, &[0], -22, "4768  mlockall(0)                       = -1 EINVAL (Invalid argument)"),
            (Munlockall, &[], 0, "4768  munlockall()                      = 0"),
            (IoDestroy, &[0x1234], -22, "4768  io_destroy(0x1234)                = -1 EINVAL (Invalid argument)"),
            (Prctl, &[0x5356_4d41, 0, 0x7ff6_b144_b000, 4096, 0], -22, "4768  prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, 0x7ff6b144b000, 4096, NULL) = -1 EINVAL (Invalid argument)"),
            (Prctl, &[0x5356_4d41, 1, 0x7ff6_b144_b000, 4096, 0x5636_b6d0_1010], -22, "4768  prctl(PR_SET_VMA, 0x1 /* PR_SET_VMA_??? */, 0x7ff6b144b000, 0x1000, 0x5636b6d01010) = -1 EINVAL (Invalid argument)"),
            (Prctl, &[35, 14, 0x7ff6_b144_b000, 100, 0], -22, "4768  prctl(PR_SET_MM, PR_SET_MM_MAP, 0x7ff6b144b000, 0x64, 0) = -1 EINVAL (Invalid argument)"),
            (ArchPrctl, &[0x2002, 0], -17, "4768  arch_prctl(ARCH_MAP_VDSO_32, 0)   = -1 EEXIST (File exists)"),
        ];
        for &(call, args, result, expected) in cases {
            assert_eq!(line(call, args, Some(result)), expected);
        }
    }

    #[test]
    fn a_call_that_never_came_back_says_so() {
        assert_eq!(
            line(Call::Munmap, &[0x1000, 4096], None),
            "4768  munmap(0x1000, 4096 <unfinished ...>) = ?"
        );
        assert_eq!(
            line(Call::Mlockall, &[1], Some(-513)),
            "4768  mlockall(MCL_CURRENT)             = ? ERESTARTNOINTR (To be restarted)"
        );
    }
}
