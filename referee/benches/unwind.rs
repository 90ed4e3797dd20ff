//! What it costs to take the stack of a stopped thread with all that it needs: a C program 30 frames deep
//! and a python3, by maptrail's unwinder, by framehop and by libunwind.
//!
//! `LIBUNWIND_PTRACE_STATIC=1 cargo bench -p maptrail-referee --bench unwind`
//!
//! Each reads the registers, what it needs of the stack's memory, and unwinds, with its caches warm;
//! maptrail also looks up the stack's id. Runs alternate, and the ratios are those of neighbours: medians of
//! them all. Times are microseconds a stack, which mean something on a quiet machine only.

#[path = "../tests/referee/libunwind.rs"]
mod libunwind;
#[path = "../../recorder/tests/unwind/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use framehop::Unwinder as _;
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use libunwind::Libunwind;
use maptrail_recorder::unwind::{
    AddressMap, FIRST_READ, Interner, Regs, StackCopy, TargetMemory, Unwinder,
};
use maptrail_tracelog::types::ModuleId;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use object::{Object, ObjectSection};
use support::{Remote, Victim, build};

const ROUNDS: usize = 60;
const PER_ROUND: u32 = 200;
/// What framehop is given of the stack, bytes: it asks for words, and somebody has to have read them.
const COPIED: usize = 16 << 10;

fn main() {
    println!(
        "{:<10} {:<10} {:>6} {:>8} {:>8}",
        "target", "by", "frames", "us", "ratio"
    );
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

/// A way to take the stack of a stopped thread, with all that it needs: registers, memory, unwinding.
struct Way<'a> {
    name: &'static str,
    /// Takes the stack once, and says how many frames it has.
    take: Box<dyn FnMut() -> usize + 'a>,
    /// Microseconds a stack, a round each.
    times: Vec<f64>,
}

impl<'a> Way<'a> {
    fn new(name: &'static str, take: impl FnMut() -> usize + 'a) -> Way<'a> {
        Way {
            name,
            take: Box::new(take),
            times: Vec::new(),
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The unwinder of the framehop crate, knowing the same modules.
fn framehop_of(space: &AddressMap, paths: &HashMap<ModuleId, String>) -> UnwinderX86_64<Vec<u8>> {
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
    other
}

fn measure(target: &str, victim: &Victim) {
    let tid = victim.pid;
    ptrace::attach(tid).unwrap();
    waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
    let registers = || ptrace::getregs(tid).unwrap();

    let mut unwinder = Unwinder::new();
    let (space, paths) = victim.space(&mut unwinder);
    let other = framehop_of(&space, &paths);

    let mut mem = Remote(tid);
    let mut stack = StackCopy::new();
    let mut interner = Interner::new();
    let mut frames = Vec::new();
    let mut wanted = FIRST_READ;
    let ours = Way::new("maptrail", || {
        let regs = Regs::from(&registers());
        stack.fill(regs.rsp(), wanted, &mut mem);
        let end = unwinder.unwind(&space, &regs, &mut stack, &mut mem, &mut frames);
        wanted = stack.wanted();
        black_box(interner.intern(&frames, end.is_truncated()));
        frames.len()
    });

    let mut cache = CacheX86_64::<_>::new();
    let mut copy = vec![0; COPIED];
    let framehop = Way::new("framehop", || {
        let regs = registers();
        let read = Remote(tid).read(regs.rsp, &mut copy);
        let copy = &copy[..read];
        let mut word = |addr: u64| {
            let start = addr.wrapping_sub(regs.rsp) as usize;
            let word = copy.get(start..).and_then(|rest| rest.first_chunk::<8>());
            word.map(|word| u64::from_le_bytes(*word)).ok_or(())
        };
        let start = UnwindRegsX86_64::new(regs.rip, regs.rsp, regs.rbp);
        let mut iterator = other.iter_frames(regs.rip, start, &mut cache, &mut word);
        let mut found = 0;
        while let Ok(Some(frame)) = iterator.next() {
            black_box(frame);
            found += 1;
        }
        found
    });

    let mut libunwind = Libunwind::new();
    let libunwind = Way::new("libunwind", || libunwind.stack(tid).0.len());

    let mut ways = [framehop, ours, libunwind];
    for way in &mut ways {
        (way.take)();
    }
    for _ in 0..ROUNDS {
        for way in &mut ways {
            let start = Instant::now();
            for _ in 0..PER_ROUND {
                black_box((way.take)());
            }
            let micros = start.elapsed().as_nanos() as f64 / 1000.0;
            way.times.push(micros / f64::from(PER_ROUND));
        }
    }
    let base = ways[0].times.clone();
    for way in &mut ways {
        let frames = (way.take)();
        let ratio = median(way.times.iter().zip(&base).map(|(time, base)| time / base));
        let time = median(way.times.iter().copied());
        println!(
            "{target:<10} {:<10} {frames:>6} {time:>8.2} {ratio:>8.2}",
            way.name
        );
    }
    ptrace::detach(tid, Signal::SIGSTOP).unwrap();
}
