//! Real programs, with gdb's unwinder as the referee where it is installed.

use std::process::Command;

use maptrail_recorder::unwind::{End, Unwinder};

use super::support::{Stack, Victim, build};

/// The addresses of a thread's frames by gdb, innermost first; `None` without gdb.
fn gdb(victim: &Victim, tid: nix::unistd::Pid) -> Option<Vec<u64>> {
    let script = format!(
        "python\n\
         gdb.execute('set backtrace past-main on')\n\
         gdb.execute('set backtrace past-entry on')\n\
         gdb.execute('set auto-load off')\n\
         for t in gdb.selected_inferior().threads():\n\
         \x20   if t.ptid[1] == {tid}:\n\
         \x20       t.switch()\n\
         \x20       f = gdb.newest_frame()\n\
         \x20       while f is not None:\n\
         \x20           print('pc', f.pc(), int(f.type() in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME)))\n\
         \x20           f = f.older()\n\
         end\n"
    );
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(format!("gdb-{tid}"));
    std::fs::write(&path, script).unwrap();
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &victim.pid.to_string(), "-x"])
        .arg(&path)
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut pcs = Vec::new();
    // Frames that gdb infers from debug information are not on the stack.
    for line in text.lines().filter_map(|line| line.strip_prefix("pc ")) {
        let (pc, inferred) = line.split_once(' ').unwrap();
        if inferred == "0" {
            pcs.push(pc.parse().unwrap());
        }
    }
    assert!(!pcs.is_empty(), "gdb found no frame: {output:?}");
    Some(pcs)
}

fn agrees_with_gdb(victim: &Victim, tid: nix::unistd::Pid, stack: &Stack) {
    match gdb(victim, tid) {
        None => {
            let in_ci = std::env::var_os("CI").is_some();
            assert!(!in_ci, "gdb is not installed: nothing was compared");
            eprintln!("SKIPPED: gdb is not installed, nothing was compared");
        }
        Some(pcs) => assert_eq!(stack.pcs, pcs, "\n{stack}"),
    }
}

const PYTHON: &str = "/usr/bin/python3";

#[test]
fn python_to_the_root() {
    let code = "
import os, signal, functools, json
def deep(n):
    if n == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        sorted([n], key=lambda m: deep(m - 1))
list(map(deep, [10]))";
    let victim = Victim::start(Command::new(PYTHON).args(["-c", code]));
    let stack = victim.unwind(victim.pid);
    assert_eq!(stack.end, End::Root, "\n{stack}");
    assert!(stack.frames.len() > 30, "\n{stack}");
    agrees_with_gdb(&victim, victim.pid, &stack);
}

#[test]
fn python_threads_to_the_root() {
    let code = "
import os, signal, threading
barrier = threading.Barrier(3)
def work(n):
    barrier.wait()
    if n == 0:
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    threading.Event().wait()
for n in range(2):
    threading.Thread(target=work, args=(n,), daemon=True).start()
barrier.wait()
threading.Event().wait()";
    let victim = Victim::start(Command::new(PYTHON).args(["-c", code]));
    let threads = victim.threads();
    assert_eq!(threads.len(), 3);
    for tid in threads {
        let stack = victim.unwind(tid);
        assert_eq!(stack.end, End::Root, "\n{stack}");
        assert!(stack.frames.len() >= 8, "\n{stack}");
        agrees_with_gdb(&victim, tid, &stack);
    }
}

/// The vdso makes no system call that stops, so the frame below is made by a fault inside it.
#[test]
fn a_frame_in_the_vdso() {
    let source = r#"
        #define _GNU_SOURCE
        #include <signal.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        static volatile int one = 1;
        static void handler(int s) { syscall(SYS_kill, getpid(), SIGSTOP); one = s; }
        __attribute__((noipa)) int caller(struct timespec *bad) {
            return clock_gettime(CLOCK_MONOTONIC, bad) + one;
        }
        int main(void) {
            signal(SIGSEGV, handler);
            return caller((struct timespec *)16) + one;
        }"#;
    let program = build("gcc", "vdso", source, &["-O2", "-fomit-frame-pointer"]);
    let victim = Victim::start(&mut Command::new(program));
    let stack = victim.unwind(victim.pid);
    assert!(stack.paths.iter().any(|path| path == "[vdso]"), "\n{stack}");
    assert_eq!(
        stack.names_in("/vdso"),
        ["handler", "caller", "main", "_start"],
        "\n{stack}"
    );
    assert_eq!(stack.end, End::Root);
    agrees_with_gdb(&victim, victim.pid, &stack);
}

/// Pieces of a program's text in mappings of their own are still that program.
#[test]
fn text_in_pieces() {
    let source = r#"
        #define _GNU_SOURCE
        #include <signal.h>
        #include <stdint.h>
        #include <string.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        static volatile int one = 1;
        #define PIECE __attribute__((noipa, aligned(4096))) int
        PIECE inner(int n) { syscall(SYS_kill, getpid(), SIGSTOP); return n + one; }
        PIECE outer(int n) { return inner(n) + one; }
        PIECE outermost(int n) { return outer(n) + one; }
        PIECE main(void) {
            char *page = (char *)((uintptr_t)outer & ~4095ul);
            mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
            page[4095] = 0x90;
            return outermost(1) + one;
        }"#;
    let program = build("gcc", "pieces", source, &["-O2", "-fomit-frame-pointer"]);
    let victim = Victim::start(&mut Command::new(program));
    let mut unwinder = Unwinder::new();
    let (space, _) = victim.space(&mut unwinder);
    let own: Vec<_> = space.iter().filter(|c| c.module.0 == 1).collect();
    assert_eq!(own.len(), 1, "equal neighbours are one: {own:?}");
    let stack = victim.unwind(victim.pid);
    assert_eq!(
        stack.names_in("/pieces"),
        ["inner", "outer", "outermost", "main", "_start"],
        "\n{stack}"
    );
    assert_eq!(stack.end, End::Root);
    assert_eq!(unwinder.modules.build_id(own[0].module).len(), 20);
}
