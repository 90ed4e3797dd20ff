// The kinds of work of `unharmed` that never wait: memory calls, processes, registers, calls that must fail.
#include "unharmed.h"
#include <fcntl.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/random.h>
#include <sys/wait.h>

enum { RW = PROT_READ | PROT_WRITE, ANON = MAP_PRIVATE | MAP_ANONYMOUS };
enum { CHILD_CODE = 23 };

static char *map(size_t pages) {
    char *p = mmap(NULL, pages * PAGE, RW, ANON, -1, 0);
    if (p == MAP_FAILED) fails("mmap", -1, 0);
    return p;
}

static void unmap(void *p, size_t pages) { gives("munmap", munmap(p, pages * PAGE), 0); }

static void mark(char *p, size_t pages) {
    for (size_t i = 0; i < pages; i++) p[i * PAGE] = (char)(i + 1);
}

static void marked(const char *after, const char *p, size_t pages) {
    for (size_t i = 0; i < pages; i++)
        if (p[i * PAGE] != (char)(i + 1)) wrong("page %zu is damaged after %s", i, after);
}

static void work_mmap(void) {
    for (int i = 0; i < 32; i++) {
        size_t pages = 3 + (size_t)up_to(30);
        char *p = map(pages);
        mark(p, pages);
        gives("mmap", (long)mmap(p + PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0), (long)(p + PAGE));
        gives("a fresh byte", p[PAGE], 0);
        p[PAGE] = 2;
        marked("mmap", p, pages);
        unmap(p, 1);
        unmap(p + PAGE, pages - 1);
    }
    rest(2000);
}

static void work_mremap(void) {
    for (int i = 0; i < 16; i++) {
        char *p = map(4), *room = map(16);
        mark(p, 4);
        p = mremap(p, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
        holds("mremap to grow failed", p != MAP_FAILED);
        marked("mremap to grow", p, 4);
        gives("mremap to shrink", (long)mremap(p, 8 * PAGE, 6 * PAGE, 0), (long)p);
        gives("mremap to move", (long)mremap(p, 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room + 4 * PAGE),
              (long)(room + 4 * PAGE));
        marked("mremap to move", room + 4 * PAGE, 4);
        unmap(room, 16);
    }
    rest(2000);
}

// The kernel itself tells whether the page may be written.
static void writable(char *p, int yes) {
    long n = getrandom(p, 1, 0);
    if (yes) gives("getrandom", n, 1);
    else fails("getrandom", n, EFAULT);
}

static void work_mprotect(void) {
    char *p = map(8);
    for (int i = 0; i < 16; i++) {
        gives("mprotect", mprotect(p + 2 * PAGE, 3 * PAGE, i % 2 ? PROT_READ : PROT_NONE), 0);
        writable(p + 3 * PAGE, 0);
        writable(p + 5 * PAGE, 1);
        gives("mprotect", mprotect(p, 8 * PAGE, RW), 0);
        writable(p + 3 * PAGE, 1);
    }
    unmap(p, 8);
    rest(2000);
}

static void work_madvise(void) {
    char *p = map(8);
    for (int i = 0; i < 16; i++) {
        mark(p, 8);
        gives("madvise", madvise(p + 4 * PAGE, 4 * PAGE, MADV_DONTNEED), 0);
        marked("madvise", p, 4);
        gives("a byte after MADV_DONTNEED", p[5 * PAGE], 0);
    }
    unmap(p, 8);
    rest(2000);
}

// The heap's end is this thread's own: main() has malloc use mmap only.
static void work_brk(void) {
    long bottom = syscall(SYS_brk, 0L);
    for (int i = 0; i < 16; i++) {
        long bytes = (1 + up_to(20)) * (long)PAGE;
        gives("brk up", syscall(SYS_brk, bottom + bytes), bottom + bytes);
        touch((void *)bottom, (size_t)bytes);
        gives("brk", syscall(SYS_brk, 0L), bottom + bytes);
        gives("brk down", syscall(SYS_brk, bottom), bottom);
    }
    rest(2000);
}

static void ended_with(pid_t pid, int code) {
    int status;
    gives("waitpid", waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code) wrong("a child's status is 0x%x", (unsigned)status);
}

// A few memory calls in a child.
static int child_code(void) {
    char *p = mmap(NULL, 4 * PAGE, RW, ANON, -1, 0);
    if (p == MAP_FAILED) return 1;
    mark(p, 4);
    if (mprotect(p, PAGE, PROT_READ) || munmap(p, 4 * PAGE)) return 2;
    return CHILD_CODE;
}

// SIGCHLD has no handler, and a thread that forks does not block it: so it disturbs nobody, whoever waits for
// what. Where libc blocks it for a moment, another thread would get it; hence the raw call here, and the byte
// that the spawned child waits for.
static void work_fork(void) {
    pid_t pid = (pid_t)syscall(SYS_fork);
    if (pid == 0) _exit(child_code());
    holds("fork failed", pid > 0);
    ended_with(pid, CHILD_CODE);
    rest(5000);
}

static void work_vfork(void) {
    pid_t pid = vfork();
    if (pid == 0) _exit(syscall(SYS_getppid) > 0 ? CHILD_CODE : 1);
    holds("vfork failed", pid > 0);
    ended_with(pid, CHILD_CODE);
    rest(5000);
}

static void work_spawn(void) {
    static int go[2];
    static char input[12];
    if (!go[1]) {
        gives("pipe", pipe(go), 0);
        gives("fcntl", fcntl(go[1], F_SETFD, FD_CLOEXEC), 0); // the child must not outlive us
        snprintf(input, sizeof input, "%d", go[0]);
    }
    char *words[] = {"unharmed", "child", input, NULL}, *none[] = {NULL};
    pid_t pid;
    gives("posix_spawn", posix_spawn(&pid, "/proc/self/exe", NULL, NULL, words, none), 0);
    gives("write", write(go[1], "", 1), 1);
    ended_with(pid, CHILD_CODE);
    rest(10000);
}

static void *short_thread(void *value) {
    unmap(map(2), 2);
    return value;
}

static void work_threads(void) {
    pthread_t ids[3];
    struct work *value = mine;
    for (int i = 0; i < 3; i++) gives("pthread_create", pthread_create(&ids[i], NULL, short_thread, value), 0);
    for (int i = 0; i < 3; i++) {
        void *result;
        gives("pthread_join", pthread_join(ids[i], &result), 0);
        gives("a thread's result", (long)result, (long)value);
    }
    rest(5000);
}

static void work_failing(void) {
    char *p = map(1);
    fails("mmap", (long)mmap(NULL, 0, RW, ANON, -1, 0), EINVAL);
    fails("mmap", (long)mmap(p, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0), EEXIST);
    fails("mmap", (long)mmap(NULL, PAGE, RW, MAP_PRIVATE, -1, 0), EBADF);
    fails("munmap", munmap(p + 1, PAGE), EINVAL);
    fails("mremap", (long)mremap(p, 3, 0, 0), EINVAL);
    fails("mprotect", mprotect(p + 1, PAGE, RW), EINVAL);
    fails("madvise", madvise(p, PAGE, 9999), EINVAL);
    fails("read", read(-1, p, 1), EBADF);
    fails("waitpid", waitpid(getpid(), NULL, 0), ECHILD);
    fails("nanosleep", nanosleep(&(struct timespec){0, -1}, NULL), EINVAL);
    fails("a call that no kernel has", syscall(9999L), ENOSYS);
    fails("call number -1", syscall(-1L), ENOSYS);
    unmap(p, 1);
    rest(3000);
}

// Registers as this thread fills them, and as it finds them again. rcx and r11 are the kernel's.
struct registers {
    unsigned long general[13]; // rax rbx rdx rsi rdi rbp r8 r9 r10 r12 r13 r14 r15
    unsigned long flags;
    unsigned long red_zone[16];
    unsigned mxcsr, fcw;
    unsigned char pad[8];
    unsigned char vector[16][64];
};
_Static_assert(offsetof(struct registers, vector) == 256, "the assembly below counts on it");

// through_WIDTH(want, got, spins): fills all registers from `want`, spins, makes the system call that they
// spell, spins again, and stores all in `got`. Neither spin touches a register but rcx, nor the flags.
#define THROUGH(width, move, vector)                                                                             \
    __asm__(".text\n.type through_" #width ", @function\nthrough_" #width ":\n"                                  \
            "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rsi; push %rdx\n"           \
            "ldmxcsr 240(%rdi); fldcw 244(%rdi)\n"                                                               \
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n" #move " 256+64*\\n(%rdi), %" #vector "\\n\n"       \
            ".endr\n"                                                                                            \
            "pushq 104(%rdi); popfq\n"                                                                            \
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"                                                    \
            "mov 112+8*\\n(%rdi), %rax; mov %rax, -8-8*\\n(%rsp)\n.endr\n"                                       \
            "mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rdx; mov 24(%rdi), %rsi; mov 40(%rdi), %rbp\n" \
            "mov 48(%rdi), %r8; mov 56(%rdi), %r9; mov 64(%rdi), %r10; mov 72(%rdi), %r12; mov 80(%rdi), %r13\n" \
            "mov 88(%rdi), %r14; mov 96(%rdi), %r15; mov 32(%rdi), %rdi\n"                                       \
            "mov (%rsp), %rcx\n1: loop 1b\n"                                                                     \
            "syscall\n"                                                                                          \
            "mov (%rsp), %rcx\n2: loop 2b\n"                                                                     \
            "mov 8(%rsp), %rcx\n"                                                                                \
            "mov %rax, 0(%rcx); mov %rbx, 8(%rcx); mov %rdx, 16(%rcx); mov %rsi, 24(%rcx); mov %rdi, 32(%rcx)\n" \
            "mov %rbp, 40(%rcx); mov %r8, 48(%rcx); mov %r9, 56(%rcx); mov %r10, 64(%rcx); mov %r12, 72(%rcx)\n" \
            "mov %r13, 80(%rcx); mov %r14, 88(%rcx); mov %r15, 96(%rcx)\n"                                       \
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"                                                    \
            "mov -8-8*\\n(%rsp), %rax; mov %rax, 112+8*\\n(%rcx)\n.endr\n"                                       \
            "pushfq; popq 104(%rcx)\n"                                                                            \
            "stmxcsr 240(%rcx); fnstcw 244(%rcx)\n"                                                              \
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n" #move " %" #vector "\\n, 256+64*\\n(%rcx)\n"       \
            ".endr\n"                                                                                            \
            "pop %rdx; pop %rsi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"                   \
            "ret\n.size through_" #width ", .-through_" #width "\n");                                            \
    void through_##width(const struct registers *want, struct registers *got, long spins);

THROUGH(16, movdqu, xmm)
THROUGH(32, vmovdqu, ymm)
THROUGH(64, vmovdqu64, zmm)

static long through(struct registers *want, long number, long rdi, long rsi, long rdx, long r10, long r8, long r9) {
    struct registers got = {.fcw = 0};
    const struct registers standard = {.mxcsr = 0x1f80, .fcw = 0x37f};
    unsigned long *general = want->general;
    general[0] = (unsigned long)number, general[2] = (unsigned long)rdx, general[3] = (unsigned long)rsi;
    general[4] = (unsigned long)rdi, general[6] = (unsigned long)r8, general[7] = (unsigned long)r9;
    general[8] = (unsigned long)r10;
    int wide = __builtin_cpu_supports("avx512f") ? 64 : __builtin_cpu_supports("avx") ? 32 : 16;
    (wide == 64 ? through_64 : wide == 32 ? through_32 : through_16)(want, &got, 1 + up_to(200000));
    __asm__ volatile("ldmxcsr %0; fldcw %1" : : "m"(standard.mxcsr), "m"(standard.fcw));
    if (wide > 16) __asm__ volatile("vzeroupper");
    for (int i = 1; i < 13; i++)
        if (got.general[i] != general[i]) wrong("general register %d is 0x%lx, not 0x%lx", i, got.general[i], general[i]);
    if (got.flags != want->flags) wrong("the flags are 0x%lx, not 0x%lx", got.flags, want->flags);
    holds("the red zone is damaged", memcmp(got.red_zone, want->red_zone, sizeof got.red_zone) == 0);
    if (got.mxcsr != want->mxcsr) wrong("mxcsr is 0x%x, not 0x%x", got.mxcsr, want->mxcsr);
    if (got.fcw != want->fcw) wrong("the FPU's control word is 0x%x, not 0x%x", got.fcw, want->fcw);
    for (int i = 0; i < 16; i++)
        if (memcmp(got.vector[i], want->vector[i], (size_t)wide)) wrong("vector register %d is damaged", i);
    return (long)got.general[0];
}

static void work_registers(void) {
    struct registers want;
    for (size_t i = 0; i < sizeof want / 8; i++) ((unsigned long *)&want)[i] = next_random(&dice);
    want.flags = 0x202 | (next_random(&dice) & 0x8d5); // interrupts on, and any of CF PF AF ZF SF OF
    want.mxcsr = 0x1f80 | ((unsigned)up_to(4) << 13);  // a rounding mode
    want.fcw = 0x37f & ~((unsigned)up_to(4) << 8);     // a precision
    gives("getppid", through(&want, SYS_getppid, 1, 2, 3, 4, 5, 6), getppid());
    long p = through(&want, SYS_mmap, 0, 4 * PAGE, RW, ANON, -1, 0);
    holds("mmap gave no page", p > 0 && p % (long)PAGE == 0);
    touch((void *)p, 4 * PAGE);
    gives("munmap", through(&want, SYS_munmap, p, 4 * PAGE, 3, 4, 5, 6), 0);
    gives("call number -1", through(&want, -1, 1, 2, 3, 4, 5, 6), -ENOSYS);
    rest(5000);
}
