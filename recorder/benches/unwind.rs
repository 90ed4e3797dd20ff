//! What unwinding a known stack costs, on stopped processes: a C program 30 frames deep and a python3,
//! beside framehop. `cargo bench -p maptrail-recorder --bench unwind`.
//!
//! Prints nanoseconds for a whole stack: the best of many short runs, since whatever else the machine does
//! only adds. Trust the ratios.

#[path = "../tests/unwind/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::fmt::Write;
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use framehop::Unwinder as _;
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use maptrail_recorder::unwind::{Interner, StackCopy, TargetMemory, Unwinder, dwarf};
use object::{Object, ObjectSection};
use support::{Remote, Victim, build};

const RUNS: usize = 400;
const PER_RUN: u32 = 500;

fn main() {
    println!("{:<10} {:>6} {:>10}  what", "target", "frames", "ns");
    let program = build("gcc", "bench-chain", &chain(27), &["-O2"]);
    measure("C", &Victim::start(&mut Command::new(program)));
    let code = "
import os, signal
def deep(n):
    if n == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        sorted([n], key=lambda m: deep(m - 1))
deep(2)";
    let mut python = Command::new("/usr/bin/python3");
    measure("python3", &Victim::start(python.args(["-c", code])));
}

/// A program whose `main` calls through functions of different frames, so that with libc's own three
/// and the one that stops there are `depth` + 3 of them.
fn chain(depth: usize) -> String {
    let mut source = String::from(
        "#define _GNU_SOURCE\n#include <signal.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
         static volatile long one = 1;\n\
         #define FUNCTION __attribute__((noipa)) long\n\
         FUNCTION f0(long n) { return syscall(SYS_tgkill, getpid(), gettid(), SIGSTOP) + n + one; }\n",
    );
    for i in 1..depth - 2 {
        let saved = i % 5;
        let _ = write!(
            source,
            "FUNCTION f{i}(long n) {{ char space[{}]; ",
            16 + 24 * i
        );
        for v in 0..saved {
            let _ = write!(source, "long v{v} = one * {v}; ");
        }
        let _ = write!(
            source,
            "__asm__ volatile(\"\" : : \"r\"(space) : \"memory\"); "
        );
        let _ = write!(source, "long r = f{}(n + 1)", i - 1);
        for v in 0..saved {
            let _ = write!(source, " + v{v}");
        }
        let _ = writeln!(source, "; return r + one + space[n & 7]; }}");
    }
    let _ = writeln!(
        source,
        "int main(void) {{ return f{}(1) + one; }}",
        depth - 3
    );
    source
}

/// The best of the runs, nanoseconds a repetition.
fn time(mut f: impl FnMut()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        for _ in 0..PER_RUN {
            f();
        }
        start.elapsed().as_nanos() as f64 / f64::from(PER_RUN)
    };
    (0..RUNS).map(run).fold(f64::INFINITY, f64::min)
}

/// No memory but what was copied.
struct Nothing;

impl TargetMemory for Nothing {
    fn read(&mut self, _: u64, _: &mut [u8]) -> usize {
        0
    }
}

fn measure(target: &str, victim: &Victim) {
    let regs = victim.regs(victim.pid);
    let mut unwinder = Unwinder::new();
    let (space, paths) = victim.space(&mut unwinder);
    let mut mem = Remote(victim.pid);
    let mut stack = StackCopy::new();
    let mut interner = Interner::new();
    let mut frames = Vec::new();

    let start = Instant::now();
    stack.fill(regs.rsp(), 16 << 10, &mut mem);
    let end = unwinder.unwind(&space, &regs, &mut stack, &mut mem, &mut frames);
    let first = start.elapsed().as_nanos() as f64;
    let depth = frames.len();
    let show = |ns: f64, what: &str| println!("{target:<10} {depth:>6} {ns:>10.0}  {what}");
    println!("{target:<10} {depth:>6} {:>10}  {end:?}", "");
    show(first, "the first time: files read, rules compiled");

    let wanted = stack.wanted();
    let ns = time(|| stack.fill(regs.rsp(), wanted, &mut mem));
    show(ns, &format!("copying {wanted} bytes of stack"));
    let ns = time(|| {
        black_box(unwinder.unwind(&space, &regs, &mut stack, &mut Nothing, &mut frames));
    });
    show(ns, "unwind, rules known, memory copied");
    let ns = time(|| {
        black_box(interner.intern(black_box(&frames), end.is_truncated()));
    });
    show(ns, "intern, stack known");
    let ns = time(|| {
        let end = unwinder.unwind(&space, &regs, &mut stack, &mut Nothing, &mut frames);
        black_box(interner.intern(&frames, end.is_truncated()));
    });
    show(ns, "unwind and intern");

    let mut other = UnwinderX86_64::<Vec<u8>>::new();
    for code in space.iter().filter(|code| code.module.0 != 0) {
        let Ok(bytes) = fs::read(&paths[&code.module]) else {
            continue;
        };
        let file = object::File::parse(&*bytes).unwrap();
        let section = |name: &str| file.section_by_name(name);
        let data = |name| Some(section(name)?.uncompressed_data().ok()?.into_owned());
        let range = |name| section(name).map(|s| s.address()..s.address() + s.size());
        let info = framehop::ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: range(".text"),
            text: data(".text"),
            got_svma: range(".got"),
            eh_frame_svma: range(".eh_frame"),
            eh_frame: data(".eh_frame"),
            eh_frame_hdr_svma: range(".eh_frame_hdr"),
            eh_frame_hdr: data(".eh_frame_hdr"),
            ..Default::default()
        };
        let avma = code.range.start.0..code.range.end.0;
        other.add_module(framehop::Module::new(String::new(), avma, code.bias, info));
    }
    let mut cache = CacheX86_64::<_>::new();
    let mut copy = vec![0u8; wanted + 4096];
    let read = mem.read(regs.rsp(), &mut copy);
    copy.truncate(read);
    let mut read = |addr: u64| {
        let start = addr.wrapping_sub(regs.rsp()) as usize;
        let word = copy.get(start..).and_then(|rest| rest.first_chunk::<8>());
        word.map(|word| u64::from_le_bytes(*word)).ok_or(())
    };
    let mut found = 0;
    let ns = time(|| {
        let registers = UnwindRegsX86_64::new(regs.rip, regs.rsp(), regs.gpr[dwarf::RBP]);
        let mut iterator = other.iter_frames(regs.rip, registers, &mut cache, &mut read);
        found = 0;
        while let Ok(Some(frame)) = iterator.next() {
            black_box(frame);
            found += 1;
        }
    });
    show(ns, &format!("framehop, {found} frames"));
}
