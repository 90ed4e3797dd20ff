//! Fixed call chains: the functions that the source calls are the frames that come out.

use std::process::Command;

use maptrail_recorder::unwind::{Cut, End, Frame, MAX_FRAMES};
use maptrail_tracelog::record::StackNode;

use super::support::{Stack, Victim, build};

/// Functions with all kinds of frames, each calling the next through a pointer that the compiler
/// cannot see through; the last calls `stop`.
const CHAIN: &str = r#"
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#define FUNCTION __attribute__((noipa)) int
static volatile int one = 1;

/* Sent to this very thread, which therefore does not come back from the call before it stops. */
FUNCTION stop(int n) { syscall(SYS_tgkill, getpid(), gettid(), SIGSTOP); return n + one; }
FUNCTION leaf_call(int n) { return stop(n) + one; }
FUNCTION recursive(int n) { return (n > 20 ? leaf_call(n) : recursive(n + 1)) + one; }
FUNCTION big_frame(int n) {
    volatile char space[300000];
    space[n] = 1; space[299999 - n] = 2;
    return recursive(n) + space[n];
}
FUNCTION aligned(int n) {
    volatile char space[128] __attribute__((aligned(128)));
    space[n] = 1;
    return big_frame(n) + space[n];
}
FUNCTION aligned_and_variable(int n, int a, int b, int c, int d, int e, int f, int g) {
    volatile double wide[16] __attribute__((aligned(64)));
    char *p = (char *)alloca(n * 8 + 100);
    memset(p, n, n * 8 + 100);
    for (int i = 0; i < 16; i++) wide[i] = i + n * g;
    int r = aligned(n);
    return r + p[n] + (int)wide[n & 15] + a + b + c + d + e + f + g;
}
FUNCTION variable(int n) {
    char *p = (char *)alloca(n + 1000);
    memset(p, n, n + 1000);
    return aligned_and_variable(n, 1, 2, 3, 4, 5, 6, 7) + p[n] + one;
}
FUNCTION many_saved(int n, long a, long b, long c, long d, long e) {
    long v = one, w = one * 2, x = one * 3, y = one * 4, z = one * 5;
    int r = variable(n);
    return r + v * a + w * b + x * c + y * d + z * e + n + one;
}
FUNCTION plain(int n) { return many_saved(n, 1, 2, 3, 4, 5) + one; }
"#;

/// What `CHAIN` gives, innermost first.
fn chain() -> Vec<&'static str> {
    let mut names = vec!["stop", "leaf_call"];
    // From 3, which every caller of the chain gives, to 21.
    names.resize(names.len() + 19, "recursive");
    names.extend([
        "big_frame",
        "aligned",
        "aligned_and_variable",
        "variable",
        "many_saved",
        "plain",
    ]);
    names
}

fn check(stack: &Stack, program: &str, outer: &[&str]) {
    let mut expected = chain();
    expected.extend(outer);
    assert_eq!(stack.names_in(program), expected, "\n{stack}");
    assert_eq!(stack.end, End::Root, "\n{stack}");
    assert_eq!(guessed(stack), 0, "\n{stack}");
}

fn guessed(stack: &Stack) -> usize {
    let guessed = |f: &&Frame| f.flags & StackNode::GUESSED != 0;
    stack.frames.iter().filter(guessed).count()
}

const MAIN: &str = "int main(void) { return plain(3) + one; }";

#[test]
fn every_optimisation_level_without_frame_pointers() {
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        let name = format!("chain{level}");
        let flags = [level, "-fomit-frame-pointer"];
        let program = build("gcc", &name, &format!("{CHAIN}{MAIN}"), &flags);
        let victim = Victim::start(&mut Command::new(program));
        check(&victim.unwind(victim.pid), &name, &["main", "_start"]);
    }
}

#[test]
fn realigned_vector_frames() {
    for (name, flags) in [
        ("chain-avx", &["-O3", "-mavx2", "-mtune=haswell"][..]),
        ("chain-realign", &["-O2", "-mstackrealign", "-mno-red-zone"]),
    ] {
        if flags.contains(&"-mavx2") && !std::arch::is_x86_feature_detected!("avx2") {
            eprintln!("this processor cannot run {name}");
            continue;
        }
        let program = build("gcc", name, &format!("{CHAIN}{MAIN}"), flags);
        let dump = Command::new("readelf")
            .args(["--debug-dump=frames"])
            .arg(&program)
            .output()
            .unwrap();
        let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert!(dump.contains("def_cfa_expression (DW_OP_breg6"), "{name}");
        let victim = Victim::start(&mut Command::new(program));
        check(&victim.unwind(victim.pid), name, &["main", "_start"]);
    }
}

#[test]
fn static_programs() {
    for (name, flags) in [
        ("chain-static", &["-O2", "-static"][..]),
        ("chain-static-pie", &["-O2", "-static-pie"]),
        ("chain-no-pie", &["-O2", "-no-pie"]),
    ] {
        let program = build("gcc", name, &format!("{CHAIN}{MAIN}"), flags);
        let victim = Victim::start(&mut Command::new(program));
        let stack = victim.unwind(victim.pid);
        let mut names = stack.names_in(name);
        // A static program has libc's functions among its own.
        names.retain(|n| !n.contains("libc_start") && *n != "syscall");
        let mut expected = chain();
        expected.extend(["main", "_start"]);
        assert_eq!(names, expected, "\n{stack}");
        assert_eq!(stack.end, End::Root);
    }
}

#[test]
fn a_thread_ends_at_clone() {
    let main = "
        static volatile int created;
        static void *thread(void *p) { while (!created) usleep(100); one = plain(3); return p; }
        int main(void) {
            pthread_t t;
            pthread_create(&t, 0, thread, 0);
            created = 1;
            pthread_join(t, 0);
        }";
    let program = build(
        "gcc",
        "chain-thread",
        &format!("{CHAIN}{main}"),
        &["-O2", "-fomit-frame-pointer"],
    );
    let victim = Victim::start(&mut Command::new(program));
    let threads = victim.threads();
    assert_eq!(threads.len(), 2);
    check(&victim.unwind(threads[1]), "chain-thread", &["thread"]);
    let main = victim.unwind(threads[0]);
    assert_eq!(
        main.names_in("chain-thread"),
        ["main", "_start"],
        "\n{main}"
    );
    assert_eq!(main.end, End::Root);
}

/// A signal handler's frames lie on top of what it interrupted.
#[test]
fn through_a_signal_handler() {
    let main = "
        static void handler(int s) { one = plain(3) + s; }
        /* The fault is the first instruction: its address minus one is another function. */
        __asm__(\".text; .globl before; .type before, @function; before: ret; .size before, .-before\\n\"
                \".globl faulting; .type faulting, @function; faulting: .cfi_startproc; ud2; ret; .cfi_endproc\\n\"
                \".size faulting, .-faulting\");
        int faulting(void);
        FUNCTION interrupted(int n) { return faulting() + n + one; }
        int main(int argc, char **argv) {
            struct sigaction action = { .sa_handler = handler };
            if (argc > 1) {
                stack_t other = { .ss_sp = malloc(1 << 20), .ss_size = 1 << 20 };
                sigaltstack(&other, 0);
                action.sa_flags = SA_ONSTACK;
            }
            sigaction(SIGILL, &action, 0);
            return interrupted(3) + one;
        }";
    let program = build(
        "gcc",
        "chain-signal",
        &format!("{CHAIN}{main}"),
        &["-O2", "-fomit-frame-pointer"],
    );
    for arguments in [&[][..], &["altstack"]] {
        let victim = Victim::start(Command::new(&program).args(arguments));
        let stack = victim.unwind(victim.pid);
        check(
            &stack,
            "chain-signal",
            &["handler", "faulting", "interrupted", "main", "_start"],
        );
        let exact: Vec<usize> = (0..stack.frames.len())
            .filter(|&i| stack.frames[i].flags & StackNode::EXACT != 0)
            .collect();
        let fault = stack.names.iter().position(|n| n == "faulting").unwrap();
        assert_eq!(exact, [fault - 1, fault], "trampoline and fault\n{stack}");
        let libc = &stack.paths[fault - 1];
        assert!(libc.contains("libc"), "{libc}");
    }
}

/// As musl and Go write it.
#[test]
fn a_signal_trampoline_without_unwind_information() {
    let main = "
        __asm__(\".text; .globl trampoline; .type trampoline, @function\\n\"
                \"ret; trampoline: mov $15, %rax; syscall; .size trampoline, .-trampoline\");
        void trampoline(void);
        static void handler(int s) { one = plain(3) + s; }
        FUNCTION interrupted(int n) { __builtin_trap(); return n + one; }
        int main(void) {
            struct { void (*handler)(int); unsigned long flags; void (*restorer)(void); long mask; }
                action = { handler, 0x04000000, trampoline, 0 };
            syscall(SYS_rt_sigaction, SIGILL, &action, 0, 8);
            return interrupted(3) + one;
        }";
    let program = build(
        "gcc",
        "chain-trampoline",
        &format!("{CHAIN}{main}"),
        &["-O2", "-fomit-frame-pointer"],
    );
    let victim = Victim::start(&mut Command::new(program));
    check(
        &victim.unwind(victim.pid),
        "chain-trampoline",
        &["handler", "trampoline", "interrupted", "main", "_start"],
    );
}

#[test]
fn cplusplus_handlers_and_destructors() {
    let main = r#"
        struct Guard { ~Guard() { plain(3); } };
        FUNCTION thrower(int n) { if (n) throw n; return n; }
        FUNCTION cleaner(int n) { Guard guard; return thrower(n) + one; }
        FUNCTION catcher(int n) { try { return cleaner(n); } catch (int caught) { return plain(caught); } }
        int main() { return catcher(3) + one; }"#;
    // Names as they are in C.
    let source =
        format!("{CHAIN}{main}").replace("#define FUNCTION ", "#define FUNCTION extern \"C\" ");
    let program = build("g++", "chain-throw", &source, &["-O2"]);
    let victim = Victim::start(&mut Command::new(program));
    let stack = victim.unwind(victim.pid);
    let mut names = stack.names_in("chain-throw");
    names.retain(|name| !name.contains("Guard"));
    let mut expected = chain();
    expected.extend(["cleaner", "catcher", "main", "_start"]);
    assert_eq!(names, expected, "\n{stack}");
    assert_eq!(stack.end, End::Root);
}

/// The kernel emulates three old calls, and a bad pointer to one of them is a fault in the middle of nowhere.
#[test]
fn through_a_call_that_the_kernel_emulates() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    if !maps.contains("[vsyscall]") {
        eprintln!("SKIPPED: this kernel emulates no calls (vsyscall=none)");
        return;
    }
    let main = "
        static void handler(int s) { one = plain(3) + s; }
        FUNCTION calls(long *bad) {
            return ((long (*)(long *))0xffffffffff600400)(bad) + one;
        }
        int main(void) {
            signal(SIGSEGV, handler);
            return calls((long *)16) + one;
        }";
    let program = build("gcc", "chain-vsyscall", &format!("{CHAIN}{main}"), &["-O2"]);
    let victim = Victim::start(&mut Command::new(program));
    let stack = victim.unwind(victim.pid);
    check(
        &stack,
        "chain-vsyscall",
        &["handler", "calls", "main", "_start"],
    );
}

/// A function that ends with a call which does not return: the return address lies in the next function, whose
/// frame is another one.
#[test]
fn a_call_at_the_end_of_a_function() {
    let main = "
        __attribute__((noipa, noreturn)) void never(int n) { one = plain(n); _exit(one); }
        __attribute__((noipa)) void last(int n) { long space[4]; __asm__ volatile(\"\" : : \"r\"(space)); never(n); }
        FUNCTION next(int n) { char space[5000]; __asm__ volatile(\"\" : : \"r\"(space)); return n + one; }
        int main(void) { last(3); return next(3); }";
    let name = "chain-noreturn";
    let program = build("gcc", name, &format!("{CHAIN}{main}"), &["-O2"]);
    let victim = Victim::start(&mut Command::new(program));
    check(
        &victim.unwind(victim.pid),
        name,
        &["never", "last", "main", "_start"],
    );
}

/// The same chain with its unwind information in other places.
#[test]
fn unwind_information_elsewhere() {
    let source = format!("{CHAIN}{MAIN}");
    for (name, flags) in [
        ("chain-no-hdr", &["-O2", "-Wl,--no-eh-frame-hdr"][..]),
        (
            "chain-debug-frame",
            &["-O2", "-g", "-fno-asynchronous-unwind-tables"],
        ),
        (
            "chain-compressed",
            &["-O2", "-g", "-gz=zlib", "-fno-asynchronous-unwind-tables"],
        ),
    ] {
        let program = build("gcc", name, &source, flags);
        let victim = Victim::start(&mut Command::new(program));
        check(&victim.unwind(victim.pid), name, &["main", "_start"]);
    }
}

/// Runs a command of binutils.
fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let status = Command::new(program).args(arguments).status();
    let status = status.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    assert!(status.success(), "{program} {arguments:?}");
}

/// Unwind information that was taken out of the program and put beside it.
#[test]
fn unwind_information_in_a_separate_file() {
    let source = format!("{CHAIN}{MAIN}");
    for (name, id) in [("chain-by-sum", "none"), ("chain-by-id", "sha1")] {
        let build_id = format!("-Wl,--build-id={id}");
        let flags = ["-O2", "-g", "-fno-asynchronous-unwind-tables", &build_id];
        let program = build("gcc", name, &source, &flags);
        let dir = program.parent().unwrap().join(".debug");
        std::fs::create_dir_all(&dir).unwrap();
        let separate = dir.join(format!("{name}.debug"));
        let path = program.as_os_str();
        run(
            "objcopy",
            &["--only-keep-debug".as_ref(), path, separate.as_os_str()],
        );
        let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
        link.push(&separate);
        run("objcopy", &["--strip-debug".as_ref(), &link, path]);
        let victim = Victim::start(&mut Command::new(&program));
        check(&victim.unwind(victim.pid), name, &["main", "_start"]);
        // A file that is not the one that was linked to is not believed.
        std::fs::write(&separate, b"something else").unwrap();
        assert!(guessed(&victim.unwind(victim.pid)) > 0);
    }
}

/// What no unwind information describes is read from the code, from where functions begin or, without
/// symbols, to where they return.
#[test]
fn code_that_is_read() {
    let source = format!("{CHAIN}{MAIN}");
    for level in ["-O0", "-O1", "-O2", "-O3", "-Os"] {
        let name = format!("chain-read{level}");
        let flags = [
            level,
            "-fomit-frame-pointer",
            "-fno-asynchronous-unwind-tables",
            "-fno-unwind-tables",
        ];
        let program = build("gcc", &name, &source, &flags);
        let victim = Victim::start(&mut Command::new(&program));
        let stack = victim.unwind(victim.pid);
        let mut expected = chain();
        expected.extend(["main", "_start"]);
        assert_eq!(stack.names_in(&name), expected, "\n{stack}");
        assert_eq!(stack.end, End::Root, "\n{stack}");
        // Every frame but the innermost in libc, the innermost here, and those outside of main.
        assert_eq!(guessed(&stack), chain().len() + 1, "\n{stack}");

        let stripped = program.with_extension("stripped");
        run(
            "strip",
            &["-o".as_ref(), stripped.as_os_str(), program.as_os_str()],
        );
        let victim = Victim::start(&mut Command::new(&stripped));
        let nameless = victim.unwind(victim.pid);
        let places =
            |stack: &Stack| -> Vec<u64> { stack.frames.iter().map(|frame| frame.offset).collect() };
        assert_eq!(places(&nameless), places(&stack), "\n{nameless}\n{stack}");
        assert_eq!(nameless.end, End::Root, "\n{nameless}");
    }
}

/// Without unwind information the frame pointers lead on, and the frames say that they are guesses.
#[test]
fn code_without_unwind_information() {
    let jit = "
        #include <sys/mman.h>
        static int callee(int n) { return plain(n) + one; }
        int main(void) {
            /* push rbp; mov rbp, rsp; call rsi; pop rbp; ret */
            static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd6, 0x5d, 0xc3};
            char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            memcpy(page + 0x100, code, sizeof code);
            mprotect(page, 4096, PROT_READ | PROT_EXEC);
            return ((int (*)(int, void *))(page + 0x100))(3, callee) + one;
        }";
    let name = "chain-jit";
    let program = build("gcc", name, &format!("{CHAIN}{jit}"), &["-O2"]);
    let victim = Victim::start(&mut Command::new(program));
    let stack = victim.unwind(victim.pid);
    let mut expected = chain();
    expected.extend(["callee", "main", "_start"]);
    assert_eq!(stack.names_in(name), expected, "\n{stack}");
    assert_eq!(stack.end, End::Root, "\n{stack}");
    let jit = stack.frames.iter().position(|f| f.module.0 == 0).unwrap();
    assert_eq!(stack.pcs[jit] & 0xfff, 0x106, "behind the call\n{stack}");
    let marked: Vec<u8> = stack.frames.iter().map(|f| f.flags).collect();
    let mut only_main = vec![0; marked.len()];
    only_main[jit + 1] = StackNode::GUESSED;
    assert_eq!(marked, only_main, "\n{stack}");
}

/// A function that runs another on a stack of its own.
#[test]
fn across_stacks() {
    let main = "
        #include <ucontext.h>
        static ucontext_t back, there;
        static void entry(void) { one = plain(3); }
        /* on(function, stack): calls function(3) with rsp = stack. */
        __asm__(\".text; .globl on; .type on, @function; on: .cfi_startproc\\n\"
                \"push %rbp; .cfi_def_cfa_offset 16; .cfi_offset 6, -16\\n\"
                \"mov %rsp, %rbp; .cfi_def_cfa_register 6; mov %rsi, %rsp; mov %rdi, %rax\\n\"
                \"mov $3, %edi; call *%rax; leave; .cfi_def_cfa 7, 8; ret; .cfi_endproc; .size on, .-on\");
        int on(void *function, void *stack);
        int main(int argc, char **argv) {
            static char low[1 << 20];
            char high[1 << 20];
            if (argc > 2) {
                getcontext(&there);
                there.uc_stack.ss_sp = low;
                there.uc_stack.ss_size = sizeof low;
                makecontext(&there, entry, 0);
                return swapcontext(&back, &there);
            }
            __asm__ volatile(\"\" : : \"r\"(high) : \"memory\");
            return on(plain, argc > 1 ? low + (1 << 19) : high + (1 << 19)) + one;
        }";
    let name = "chain-stacks";
    let program = build("gcc", name, &format!("{CHAIN}{main}"), &["-O2"]);
    for (arguments, outer) in [
        (&[][..], &["on", "main", "_start"][..]),
        (&["low"], &["on", "main", "_start"]),
        (&["context", "of its own"], &["entry"]),
    ] {
        let victim = Victim::start(Command::new(&program).args(arguments));
        check(&victim.unwind(victim.pid), name, outer);
    }
}

/// Stacks that go on where nobody can follow are cut, and say why.
#[test]
fn what_cannot_be_followed_is_cut() {
    let main = r#"
        FUNCTION deep(int n) { return (n ? deep(n - 1) : plain(3)) + one; }
        #define ASM(name, body) \
            __asm__(".text; .globl " #name "; .type " #name ", @function; " #name ": .cfi_startproc\n" \
                    body "; ret; .cfi_endproc; .size " #name ", .-" #name); \
            int name(void)
        /* Its CFI says that its frame is empty, and finds its own return address there. */
        ASM(stuck, "sub $8, %rsp; .cfi_def_cfa_offset 0; mov $3, %edi; call plain; add $8, %rsp");
        /* The caller is found by rbx, which the callee does not give back. */
        ASM(loses, ".cfi_undefined 3; sub $8, %rsp; .cfi_def_cfa_offset 16; mov $3, %edi; call plain; add $8, %rsp");
        ASM(needs, "push %rbx; .cfi_def_cfa_offset 16; .cfi_offset 3, -16; mov %rsp, %rbx\n"
                   ".cfi_def_cfa 3, 16; call loses; pop %rbx; .cfi_def_cfa 7, 8");
        ASM(unreadable, "xor %ebx, %ebx; .cfi_def_cfa 3, 64; push %rax; mov $3, %edi; call plain; pop %rax");
        int main(int argc, char **argv) {
            switch (argv[1][0]) {
            case 'd': return deep(5000) + one;
            case 's': return stuck() + one;
            case 'l': return needs() + one;
            default: return unreadable() + one;
            }
        }"#;
    let name = "chain-cut";
    let program = build("gcc", name, &format!("{CHAIN}{main}"), &["-O2"]);
    for (argument, outer, cut) in [
        ("deep", None, Cut::Depth),
        ("stuck", Some(&["stuck"][..]), Cut::NotUpwards),
        ("lost", Some(&["loses", "needs"]), Cut::LostRegister),
        ("unreadable", Some(&["unreadable"]), Cut::Unreadable),
    ] {
        let victim = Victim::start(Command::new(&program).arg(argument));
        let stack = victim.unwind(victim.pid);
        assert_eq!(stack.end, End::Truncated(cut), "\n{stack}");
        let mut expected = chain();
        match outer {
            Some(outer) => expected.extend(outer),
            // libc's syscall() is the frame that is not the program's.
            None => expected.resize(MAX_FRAMES - 1, "deep"),
        }
        assert_eq!(stack.names_in(name), expected, "\n{stack}");
    }
}
