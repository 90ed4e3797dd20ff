//! From what a thread asks of the kernel to a memory call of the table, whatever its ABI.

use maptrail_tracelog::calls::{Abi, Call, I386_IPC, IPC_SHMAT, IPC_SHMDT};
use maptrail_tracelog::types::Tid;

use crate::sys::memory;

/// A memory call about to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub call: Call,
    /// Arguments in the form of the call; those past its count are 0.
    pub args: [u64; 6],
    /// Where it will store its result, if not in a register (i386 `ipc`).
    pub result_at: Option<u64>,
}

/// `PR_SET_VMA` and `PR_SET_MM`.
const PRCTL_OPTIONS: [u64; 2] = [0x5356_4d41, 35];

/// Reads a call. `None`: it is no memory call.
#[must_use]
pub fn decode(tid: Tid, abi: Abi, number: u64, args: [u64; 6]) -> Option<Wanted> {
    let mut args = args;
    if abi == Abi::I386 {
        // 64-bit code may leave anything in the upper halves; the kernel cuts them off.
        args = args.map(|arg| arg & u64::from(u32::MAX));
        if number == u64::from(I386_IPC) {
            return ipc(args);
        }
    }
    let call = Call::from_number(abi, number)?;
    match call {
        Call::Prctl if !PRCTL_OPTIONS.contains(&args[0]) => return None,
        Call::ArchPrctl if !matches!(args[0], 0x2001..=0x2003 | 0x5001 | 0x5002) => return None,
        Call::OldMmap => args = old_mmap(tid, args[0])?,
        _ => {}
    }
    for unused in args.iter_mut().skip(call.args().len()) {
        *unused = 0;
    }
    Some(Wanted {
        call,
        args,
        result_at: None,
    })
}

/// i386 `mmap` (90): six words in memory, offset in bytes.
fn old_mmap(tid: Tid, at: u64) -> Option<[u64; 6]> {
    let mut raw = [0u8; 24];
    if memory::read(tid, at, &mut raw) != raw.len() {
        return None;
    }
    let mut args = [0; 6];
    for (arg, word) in args.iter_mut().zip(raw.chunks_exact(4)) {
        *arg = u64::from(u32::from_le_bytes(word.try_into().ok()?));
    }
    Some(args)
}

/// i386 `ipc(call, first, second, third, ptr)`: ipc(2), sys_ipc in the kernel's ipc/syscall.c.
fn ipc(args: [u64; 6]) -> Option<Wanted> {
    let [call, first, second, third, ptr, _] = args;
    let version = call >> 16;
    match (call & 0xffff) as u32 {
        IPC_SHMAT if version != 1 => Some(Wanted {
            call: Call::Shmat,
            args: [first, ptr, second, 0, 0, 0],
            result_at: Some(third),
        }),
        IPC_SHMDT => Some(Wanted {
            call: Call::Shmdt,
            args: [ptr, 0, 0, 0, 0, 0],
            result_at: None,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i386_ipc_becomes_the_plain_calls() {
        let me = Tid(std::process::id());
        let shmat = decode(me, Abi::I386, 117, [21, 7, 4096, 0x1000, 0x2000, 0]).expect("shmat");
        assert_eq!(shmat.call, Call::Shmat);
        assert_eq!(shmat.args, [7, 0x2000, 4096, 0, 0, 0]);
        assert_eq!(shmat.result_at, Some(0x1000));
        assert_eq!(
            decode(me, Abi::I386, 117, [1, 0, 0, 0, 0, 0]),
            None,
            "semop"
        );
    }

    #[test]
    fn i386_arguments_are_cut_to_32_bits() {
        let me = Tid(std::process::id());
        let address = 0xffff_ffff_f700_0000;
        let munmap = decode(me, Abi::I386, 91, [address, 4096, 0, 0, 0, 0]).expect("munmap");
        assert_eq!(munmap.args[0], 0xf700_0000);
    }

    #[test]
    fn old_mmap_is_fetched_from_memory() {
        let block: [u32; 6] = [0, 8192, 3, 0x22, u32::MAX, 0];
        let me = Tid(std::process::id());
        let at = std::ptr::from_ref(&block) as u64;
        let args = old_mmap(me, at).expect("it is readable");
        assert_eq!(args, [0, 8192, 3, 0x22, 0xffff_ffff, 0]);
    }

    #[test]
    fn prctl_is_a_memory_call_for_two_options_only() {
        let me = Tid(std::process::id());
        assert!(decode(me, Abi::X86_64, 157, [15, 0, 0, 0, 0, 0]).is_none());
        assert!(decode(me, Abi::X86_64, 157, [0x5356_4d41, 0, 0, 0, 0, 0]).is_some());
    }
}
