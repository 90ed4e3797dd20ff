//! Damaged and hostile files: any outcome is right but a panic or an endless run.

use std::fs::{self, File};
use std::io::Write;

use maptrail_recorder::unwind::{
    AddressMap, End, FileKey, Frame, Regs, StackCopy, TargetMemory, Unwinder,
};
use maptrail_tracelog::types::{Addr, ModuleId, Range};

use super::support::build;

/// Memory in which every word is a plausible return address into the module below.
struct Anywhere;

const BASE: u64 = 0x5555_0000_0000;

impl TargetMemory for Anywhere {
    fn read(&mut self, addr: u64, buf: &mut [u8]) -> usize {
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = addr.wrapping_add(i as u64);
            let word = BASE + 0x1000 + (at / 8).wrapping_mul(0x9e37_79b9) % 0x800;
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
        buf.len()
    }
}

/// Unwinds from several addresses of a module with these bytes; returns all frames seen.
fn unwind_all(file: File) -> usize {
    let mut unwinder = Unwinder::new();
    let key = FileKey {
        dev: (1, 1),
        inode: 1,
    };
    let module = unwinder.modules.add_file(key, file);
    let mut space = AddressMap::new();
    let bias = unwinder.modules.bias(module, BASE + 0x1000, 0x1000);
    let range = Range {
        start: Addr(BASE),
        end: Addr(BASE + 0x10_0000),
    };
    space.insert(range, module, bias);
    let mut seen = 0;
    let mut stack = StackCopy::new();
    let mut frames = Vec::new();
    for start in (0x1000..0x1800).step_by(64) {
        let regs = Regs {
            gpr: std::array::from_fn(|i| 0x7fff_0000_0000 + i as u64 * 64),
            rip: BASE + start,
            known: u16::MAX,
            ..Regs::default()
        };
        stack.fill(regs.rsp(), 8192, &mut Anywhere);
        unwinder.unwind(&space, &regs, &mut stack, &mut Anywhere, &mut frames);
        seen += frames.len();
    }
    seen
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile();
    file.write_all(bytes).unwrap();
    file
}

/// A file without a name, readable and writable.
fn tempfile() -> File {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "damage-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    fs::remove_file(&path).unwrap();
    file
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

fn small_program(name: &str, flags: &[&str]) -> Vec<u8> {
    let source = "
        #include <alloca.h>
        #include <string.h>
        __attribute__((noinline)) int inner(int n) { char *p = alloca(n); memset(p, n, n); return p[n / 2]; }
        __attribute__((noinline)) int outer(int n, char **v) {
            volatile char wide[64] __attribute__((aligned(64)));
            wide[n] = inner(n); return wide[n] + v[0][0];
        }
        int main(int argc, char **argv) { return outer(argc, argv) + inner(argc); }";
    fs::read(build("gcc", name, source, flags)).unwrap()
}

#[test]
fn flipped_bytes_never_panic() {
    for (name, flags) in [
        ("damage", &["-O2", "-Wl,-z,noseparate-code"][..]),
        ("damage-no-hdr", &["-O2", "-g", "-Wl,--no-eh-frame-hdr"]),
        (
            "damage-debug-frame",
            &["-O2", "-g", "-fno-asynchronous-unwind-tables"],
        ),
    ] {
        let good = small_program(name, flags);
        let whole = unwind_all(file_of(&good));
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut different = 0;
        for _ in 0..150 {
            let mut bad = good.clone();
            for _ in 0..1 + random.below(40) {
                // Half of the damage goes into the headers.
                let limit = if random.below(2) == 0 {
                    1024
                } else {
                    bad.len()
                };
                let at = random.below(limit);
                bad[at] = [0, 0xff, 0x7f, 0x80, random.below(256) as u8][random.below(5)];
            }
            different += usize::from(unwind_all(file_of(&bad)) != whole);
        }
        assert!(different > 0, "the damage never mattered");
    }
}

#[test]
fn every_prefix_of_a_file_is_survived() {
    let good = small_program("damage-prefix", &["-O2"]);
    for len in (0..good.len()).step_by(97) {
        let seen = unwind_all(file_of(&good[..len]));
        assert!(seen > 0, "the first frame is always there");
    }
}

/// The file shrinks after its tables were read.
#[test]
fn a_file_truncated_while_in_use() {
    let file = file_of(&small_program("damage-shrink", &["-O2"]));
    let other = file.try_clone().unwrap();
    let mut unwinder = Unwinder::new();
    let key = FileKey {
        dev: (1, 1),
        inode: 1,
    };
    let module = unwinder.modules.add_file(key, file);
    let mut space = AddressMap::new();
    let range = Range {
        start: Addr(BASE),
        end: Addr(BASE + 0x10_0000),
    };
    space.insert(range, module, unwinder.modules.bias(module, BASE, 0));
    let mut stack = StackCopy::new();
    let mut frames = Vec::new();
    for (start, len) in [(0x1080, None), (0x10c0, Some(0x2010)), (0x1100, Some(0))] {
        if let Some(len) = len {
            other.set_len(len).unwrap();
        }
        let regs = Regs {
            rip: BASE + start,
            known: u16::MAX,
            ..Regs::default()
        };
        stack.fill(0, 8192, &mut Anywhere);
        unwinder.unwind(&space, &regs, &mut stack, &mut Anywhere, &mut frames);
        assert_eq!(frames[0].module, module);
    }
}

/// Frames that lead nowhere end after a bounded number of steps, and say so.
#[test]
fn what_lies_in_no_code_is_not_invented() {
    let mut unwinder = Unwinder::new();
    let mut stack = StackCopy::new();
    let mut frames = vec![Frame {
        module: ModuleId(7),
        offset: 7,
        flags: 7,
    }];
    let regs = Regs {
        rip: BASE,
        known: u16::MAX,
        ..Regs::default()
    };
    let end = unwinder.unwind(
        &AddressMap::new(),
        &regs,
        &mut stack,
        &mut Anywhere,
        &mut frames,
    );
    assert!(matches!(end, End::Truncated(_)));
    assert_eq!(
        frames,
        [Frame {
            module: ModuleId(0),
            offset: BASE,
            flags: 0
        }]
    );
}
