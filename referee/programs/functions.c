/* Functions with all kinds of frames and of ways in and out, for single-stepping: each is entered and left,
 * and every instruction of it is a place where the stack must be right. */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define FUNCTION __attribute__((noipa)) int
static volatile int one = 1;

FUNCTION leaf(int n) { return n + one; }
FUNCTION tail(int n) { return leaf(n + 1); }
FUNCTION calls(int n) { return leaf(n) + tail(n) + one; }
__attribute__((optimize("no-omit-frame-pointer"))) FUNCTION frame_pointer(int n) { return calls(n) + leaf(n); }
FUNCTION variable(int n) {
    char *p = alloca(n * 40 + 100);
    memset(p, n, 100);
    return calls(n) + p[n];
}
FUNCTION aligned(int n) {
    volatile double wide[8] __attribute__((aligned(64)));
    wide[n & 7] = calls(n);
    return (int)wide[n & 7] + leaf(n);
}
FUNCTION aligned_variable(int n, int a, int b, int c, int d, int e, int f) {
    volatile double wide[8] __attribute__((aligned(64)));
    char *p = alloca(n * 40 + 100);
    memset(p, n, 100);
    wide[n & 7] = aligned(n) + a + b + c + d + e + f;
    return (int)wide[n & 7] + p[n];
}
FUNCTION big_frame(int n) {
    volatile char space[300000];
    space[n] = 1;
    return calls(n) + space[n];
}
FUNCTION many_saved(int n) {
    int a = leaf(n), b = leaf(a), c = leaf(b), d = leaf(c), e = leaf(d), f = leaf(e);
    return leaf(a + b) + leaf(c + d) + leaf(e + f) + a + b + c + d + e + f;
}
FUNCTION early_return(int n) {
    if (n > 100) return n;
    int a = many_saved(n);
    if (a > 100000) return leaf(a);
    return many_saved(n + a);
}
FUNCTION recursive(int n) { return n ? recursive(n - 1) + one : calls(n); }
typedef int (*function)(int);
FUNCTION indirect(int n) {
    static volatile function const table[] = {leaf, tail, calls, frame_pointer};
    int sum = 0;
    for (int i = 0; i < 4; i++) sum += table[i](n);
    return sum;
}

static jmp_buf there;
FUNCTION jumps(int n) { if (n == 0) longjmp(there, 1); return jumps(n - 1) + one; }
FUNCTION lands(int n) { return setjmp(there) ? leaf(n) : jumps(n); }

static void handler(int s) { one = calls(s) > 0; }
FUNCTION signalled(int n) { raise(SIGUSR1); return leaf(n); }
FUNCTION signalled_elsewhere(int n) {
    stack_t other = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigaltstack(&other, 0);
    sigaction(SIGUSR2, &action, 0);
    raise(SIGUSR2);
    return leaf(n);
}

static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b + leaf(0) - one; }
FUNCTION libc(int n) {
    char text[2000], copy[2000];
    int numbers[] = {5, 3, 9, 1, 7, 2, n};
    struct timespec now;
    for (int size = 1; size < 2000; size = size * 3 + n) {
        memset(text, 'x', size);
        text[size - 1] = 0;
        memcpy(copy, text, size);
        memmove(copy + 1, copy, size - 1);
        one = strlen(copy) + strcmp(copy, text) != 77777;
        one = memchr(copy, 'y', size) == 0 && strchr(text, 'z') == 0;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    time(0);
    qsort(numbers, 7, sizeof numbers[0], compare);
    snprintf(text, sizeof text, "%d %s %.3f", numbers[0], "text", n / 3.0);
    free(realloc(malloc(n + 1000), n + 300000));
    void *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, 4096);
    return text[0] + getppid() + numbers[1];
}

#ifdef __GLIBC__
static ucontext_t back, coroutine;
static void body(void) { one = calls(1) > 0; swapcontext(&coroutine, &back); one = calls(2) > 0; }
FUNCTION switches(int n) {
    static char stack[1 << 16];
    getcontext(&coroutine);
    coroutine.uc_stack.ss_sp = stack;
    coroutine.uc_stack.ss_size = sizeof stack;
    coroutine.uc_link = &back;
    makecontext(&coroutine, body, 0);
    swapcontext(&back, &coroutine);
    swapcontext(&back, &coroutine);
    return leaf(n);
}
#else
#define switches leaf
#endif

/* A switch of stacks as coroutine libraries write it: what must survive is pushed, and the other popped. */
__asm__(".text; .globl hand_over; .type hand_over, @function; hand_over:\n"
        "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, (%rdi); mov %rsi, %rsp\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n"
        ".size hand_over, .-hand_over");
void hand_over(void **save, void *to);
static void *main_stack, *hand_stack;
static void hand_body(void) {
    for (;;) { one = calls(1) > 0; hand_over(&hand_stack, main_stack); }
}
FUNCTION switches_by_hand(int n) {
    void **top = (void **)((char *)malloc(1 << 16) + (1 << 16)) - 2;
    *--top = 0;
    *--top = (void *)hand_body;
    hand_stack = top - 6;
    for (int i = 0; i < 3; i++) hand_over(&main_stack, hand_stack);
    return leaf(n);
}

static void *thread(void *p) { one = calls(*(int *)p) > 0; return p; }
FUNCTION threads(int n) {
    pthread_t id;
    if (pthread_create(&id, 0, thread, &n)) abort();
    pthread_join(id, 0);
    return leaf(n);
}
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void initialise(void) { leaf(1); }
static void at_exit(void) { calls(1); }

int main(void) {
    signal(SIGUSR1, handler);
    atexit(at_exit);
    pthread_once(&once, initialise);
    int sum = frame_pointer(1) + variable(2) + aligned(3) + aligned_variable(1, 2, 3, 4, 5, 6, 7) + big_frame(4);
    sum += early_return(1) + recursive(5) + indirect(3) + lands(4) + signalled(1) + signalled_elsewhere(1);
    sum += libc(3);
    sum += switches(1) + switches_by_hand(1) + threads(1);
    printf("%d\n", sum > 0);
    return 0;
}
