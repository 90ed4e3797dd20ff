//! The table of memory calls: against itself, against how the kernel takes numbers, and against the
//! kernel headers of this machine.

use maptrail_tracelog::calls::{Abi, Call, I386_IPC, TABLE, X32_BIT};

#[test]
fn rows_stand_at_their_discriminants() {
    for (i, row) in TABLE.iter().enumerate() {
        assert_eq!(row.call as usize, i, "{}", row.name);
        assert_eq!(row.call.row(), row);
        assert_eq!(Call::from_u8(i as u8), Some(row.call));
        assert!(row.args.len() <= 6);
    }
    assert_eq!(Call::from_u8(TABLE.len() as u8), None);
    assert_eq!(Abi::from_u8(2), Some(Abi::X32));
    assert_eq!(Abi::from_u8(3), None);
}

#[test]
fn numbers_lead_back_to_their_calls() {
    let mut found = 0;
    for abi in Abi::ALL {
        for call in Call::ALL {
            if let Some(nr) = call.number(abi) {
                assert_eq!(Call::from_number(abi, u64::from(nr)), Some(call));
                found += 1;
            }
        }
        for nr in 0..2000_u64 {
            let nr = if abi == Abi::X32 {
                nr | u64::from(X32_BIT)
            } else {
                nr
            };
            if let Some(call) = Call::from_number(abi, nr) {
                assert_eq!(call.number(abi).map(u64::from), Some(nr));
            }
        }
    }
    assert_eq!(
        found,
        22 + 23 + 22,
        "two ABIs lack the old mmaps, one lacks the new"
    );
}

#[test]
fn the_look_up_does_as_the_kernel_does() {
    // The upper half of orig_rax may hold anything.
    assert_eq!(
        Call::from_number(Abi::X86_64, 0xdead_beef_0000_0009),
        Some(Call::Mmap)
    );
    assert_eq!(Call::from_number(Abi::X86_64, u64::MAX), None);
    // x32 without its bit is no x32 number, and with it no 64-bit one.
    assert_eq!(Call::from_number(Abi::X32, 9), None);
    assert_eq!(Call::from_number(Abi::X86_64, 9 | u64::from(X32_BIT)), None);
    assert_eq!(
        Call::from_number(Abi::X32, 543 | u64::from(X32_BIT)),
        Some(Call::IoSetup)
    );
    assert_eq!(Call::from_number(Abi::X32, 206 | u64::from(X32_BIT)), None);
    assert_eq!(Call::from_number(Abi::I386, u64::from(I386_IPC)), None);
}

/// Compares with the kernel headers of this machine, where they are installed. Headers may be
/// older than a call: a name that they lack is passed over, a number that differs is not.
#[test]
fn the_table_agrees_with_the_kernel_headers() {
    let headers = [
        (Abi::X86_64, "unistd_64.h"),
        (Abi::I386, "unistd_32.h"),
        (Abi::X32, "unistd_x32.h"),
    ];
    for (abi, file) in headers {
        let path = format!("/usr/include/x86_64-linux-gnu/asm/{file}");
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        let defined: Vec<(&str, u32)> = text.lines().filter_map(header_line).collect();
        assert!(
            defined.len() > 300,
            "{file} should define hundreds of numbers"
        );
        for row in &TABLE {
            // The headers call i386's first mmap plainly so.
            let name = if row.call == Call::OldMmap {
                "mmap"
            } else {
                row.name
            };
            if abi == Abi::I386 && row.call == Call::Mmap {
                continue;
            }
            if abi != Abi::I386 && row.call == Call::OldMmap {
                continue;
            }
            if let Some((_, nr)) = defined.iter().find(|(n, _)| *n == name) {
                assert_eq!(row.call.number(abi), Some(*nr), "{name} in {file}");
            }
        }
        let ipc = defined.iter().find(|(n, _)| *n == "ipc");
        if abi == Abi::I386 {
            assert_eq!(ipc, Some(&("ipc", I386_IPC)));
        }
    }
}

/// `#define __NR_name 9` or `#define __NR_name (__X32_SYSCALL_BIT + 9)`.
fn header_line(line: &str) -> Option<(&str, u32)> {
    let (name, value) = line.strip_prefix("#define __NR_")?.split_once(' ')?;
    let value = value.trim();
    match value.strip_prefix("(__X32_SYSCALL_BIT + ") {
        Some(nr) => Some((name, nr.strip_suffix(')')?.parse::<u32>().ok()? | X32_BIT)),
        None => Some((name, value.parse().ok()?)),
    }
}
