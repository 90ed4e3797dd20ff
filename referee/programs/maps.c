/* Maps and unmaps for ever, from the places that unwinders find hard: `maps nested|aligned|signal|coroutines`. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <ucontext.h>
#endif

#define FUNCTION __attribute__((noipa)) int
static volatile int one = 1;

FUNCTION map(int n) {
    char *p = mmap(0, n << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < n; i++) p[i << 12] = one;
    munmap(p, n << 12);
    return p != 0;
}
FUNCTION computes(int n) {
    unsigned sum = n;
    char text[512];
    for (int i = 0; i < 200; i++) {
        memset(text, sum, sizeof text);
        sum = sum * 31 + text[i] + strnlen(text, sizeof text);
    }
    return sum & 1;
}
FUNCTION saves(int n, long a, long b, long c) {
    long v = one, w = v + a, x = w + b, y = x + c;
    int r = map(n) + computes(n);
    return r + v * w + x * y;
}
FUNCTION nested(int n, int depth) {
    return depth ? nested(n, depth - 1) + one : saves(n, 1, 2, 3) + computes(n);
}
FUNCTION aligned(int n, int a, int b, int c, int d, int e, int f) {
    volatile double wide[16] __attribute__((aligned(64)));
    char *p = __builtin_alloca(n * 40 + 100);
    memset(p, n, 100);
    for (int i = 0; i < 16; i++) wide[i] = i * n + a * f;
    int r = map(n) + nested(n, 2);
    for (int i = 0; i < 16; i++) r += (int)wide[i] + b + c + d + e;
    return r + p[n];
}
static void handler(int s) { one = map(s & 7) > 0; }
static void signals(void) {
    stack_t other = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    struct sigaction action = {.sa_handler = handler};
    sigaltstack(&other, 0);
    sigaction(SIGPROF, &action, 0);
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR1, &action, 0);
    struct itimerval often = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_PROF, &often, 0);
    for (;;) { one = nested(3, 3) > -1000000; raise(SIGUSR1); raise(SIGPROF); }
}

#ifdef __GLIBC__
enum { STACK = 1 << 16 };
static ucontext_t back, there;
static void body(void) { for (;;) { one = nested(2, 3) > -1000000; swapcontext(&there, &back); } }
__asm__(".text; .globl hand_over; .type hand_over, @function; hand_over:\n"
        "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi); mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n"
        ".size hand_over, .-hand_over");
void hand_over(void **save, void *to);
static void *main_stack, *hand_stack;
static void hand_body(void) { for (;;) { one = nested(2, 3) > -1000000; hand_over(&hand_stack, main_stack); } }
static void coroutines(void) {
    getcontext(&there);
    there.uc_stack.ss_sp = malloc(STACK);
    there.uc_stack.ss_size = STACK;
    makecontext(&there, body, 0);
    void **top = (void **)((char *)malloc(STACK) + STACK) - 2;
    *--top = 0;
    *--top = (void *)hand_body;
    hand_stack = top - 6;
    for (;;) {
        swapcontext(&back, &there);
        hand_over(&main_stack, hand_stack);
        one = computes(1) >= 0;
    }
}
#endif

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "nested";
    if (!strcmp(what, "signal")) signals();
#ifdef __GLIBC__
    if (!strcmp(what, "coroutines")) coroutines();
#endif
    for (;;) one = (what[0] == 'a' ? aligned(3, 1, 2, 3, 4, 5, 6) : nested(3, 6)) != -1;
}
