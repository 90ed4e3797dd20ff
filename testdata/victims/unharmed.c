// A program that notices when it is harmed: threads that make calls of all sorts and check every result.
//
//   unharmed [MILLISECONDS=0] [WITHOUT,...|none] [shielded]
//
// Each kind of work has a thread of its own, and a partner where it needs one. Memory calls, processes and
// registers are in unharmed_memory.h, everything that waits, transfers or is signalled in unharmed_waits.h.
// The kinds that are named in WITHOUT do not run; without `epoll`, `interrupted` makes no epoll_pwait.
// `shielded`: only threads that fork can get SIGCHLD. (Ignored as it is, it wakes nobody; but while a forking
// thread is traced, the kernel wakes any that does not block it, and what a large transfer has lost then,
// nobody can give back.) Nothing may be interrupted, cut short, early, lost, or answered otherwise than by a
// kernel that nobody disturbs.
//
// Prints `working` when every kind has done a round. Ends after MILLISECONDS; with 0, when standard input
// ends; in both cases by SIGTERM, too. The last line is
//   ok {KIND:ROUNDS,...}     and exit code 0: all was right, and every kind did work
//   WRONG KIND: WHAT         and exit code 1: at once
//   STUCK KIND               and exit code 1: this kind has done no round for half a minute
// maptrail must leave it unharmed, however it comes and goes.
#include "unharmed_memory.h"
#include "unharmed_waits.h"
#include <malloc.h>

#define WORK(kind) {.name = #kind, .round = work_##kind}
#define FORKS(kind) {.name = #kind, .round = work_##kind, .forks = 1}
static struct work all[] = {
    WORK(mmap), WORK(mremap), WORK(mprotect), WORK(madvise), WORK(brk), FORKS(fork), FORKS(vfork), FORKS(spawn),
    WORK(threads), WORK(failing), WORK(registers), WORK(sleep), WORK(epoll), WORK(poll), WORK(ppoll), WORK(select),
    WORK(pselect), WORK(aio), WORK(futex), WORK(semaphore), WORK(sigtimedwait), WORK(recv), WORK(accept), WORK(pipe),
    WORK(socket), WORK(queued), WORK(interrupted), WORK(timerfd), WORK(timer),
};
enum { KINDS = sizeof all / sizeof *all, PATIENCE_S = 30 };
static atomic_int started, ending;

static int left_out(const char *name, const char *without) {
    size_t n = strlen(name);
    for (const char *at = without; (at = strstr(at, name)); at += n)
        if ((at == without || at[-1] == ',') && (at[n] == ',' || !at[n])) return 1;
    return 0;
}

static void *work(void *which) {
    static _Thread_local char stack[65536];
    stack_t mine_before, mine_after, alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigset_t before, after_round;
    mine = which;
    dice = (unsigned long)now_ns() ^ (unsigned long)&stack;
    gives("sigaltstack", sigaltstack(&alternate, &mine_before), 0);
    if (mine->forks) {
        only(SIGCHLD, &before);
        pthread_sigmask(SIG_UNBLOCK, &before, NULL);
    }
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    while (!started) rest(1000);
    do {
        mine->round();
        pthread_sigmask(SIG_SETMASK, NULL, &after_round);
        holds("the signal mask has changed", memcmp(&before, &after_round, sizeof before) == 0);
        gives("sigaltstack", sigaltstack(NULL, &mine_after), 0);
        holds("the alternate stack has changed", mine_after.ss_sp == stack && mine_after.ss_flags == 0);
        atomic_fetch_add(&mine->rounds, 1);
    } while (!ending);
    mine->over = 1;
    return NULL;
}

static void on_term(int number) { (void)number, ending = 1; }

// Waits a little; true when it is time to end.
static int time_is_up(long until, const sigset_t *open) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    struct timespec tick = {0, 20000000};
    int ready = ppoll(&input, until ? 0 : 1, &tick, open);
    char byte;
    if (ready < 0 && !ending) gives("ppoll of the main thread", ready, 0);
    return ending || (until && now_ns() >= until) || (ready == 1 && read(0, &byte, 1) <= 0);
}

// Ends the victim if a kind that is not over has done no round during the last PATIENCE_S seconds' looks.
static void watch(void) {
    static long seen[KINDS], looks[KINDS];
    for (int i = 0; i < KINDS; i++) {
        long rounds = all[i].rounds;
        looks[i] = !all[i].round || all[i].over || rounds != seen[i] ? 0 : looks[i] + 1;
        seen[i] = rounds;
        if (looks[i] < PATIENCE_S * 50) continue;
        dprintf(1, "STUCK %s\n", all[i].name);
        _exit(1);
    }
}

static int every(int (*true_of)(struct work *)) {
    for (int i = 0; i < KINDS; i++)
        if (all[i].round && !true_of(&all[i])) return 0;
    return 1;
}

static int has_worked(struct work *kind) { return kind->rounds > 0; }

static int is_over(struct work *kind) { return kind->over; }

int main(int argc, char **argv) {
    static struct work outline = {.name = "main"};
    mine = &outline;
    if (argc > 2 && strcmp(argv[1], "child") == 0) {
        char byte;
        return read((int)arg(argc, argv, 2, 0), &byte, 1) == 1 ? child_code() : 3;
    }
    // Nobody but its own thread moves the heap's end.
    mallopt(M_MMAP_THRESHOLD, 0);
    signal(SIGTERM, on_term);
    sigset_t open;
    only(SIGTERM, &blocked);
    for (int number = SIGRTMIN; number <= SIGRTMAX; number++) sigaddset(&blocked, number);
    if (argc > 3 && strcmp(argv[3], "shielded") == 0) sigaddset(&blocked, SIGCHLD);
    pthread_sigmask(SIG_BLOCK, &blocked, &open);
    for (int number = SIGRTMIN; number <= SIGRTMAX; number++) sigaddset(&open, number);
    without_epoll = argc > 2 && left_out("epoll", argv[2]);
    for (int i = 0; i < KINDS; i++) {
        pthread_t id;
        if (argc > 2 && left_out(all[i].name, argv[2])) all[i].round = NULL;
        else gives("pthread_create", pthread_create(&id, NULL, work, &all[i]), 0);
    }
    // While libc makes a thread it blocks SIGCHLD, and another thread would get it.
    started = 1;
    long ms = arg(argc, argv, 1, 0);
    while (!every(has_worked)) {
        time_is_up(now_ns() + 1, &open);
        watch();
    }
    dprintf(1, "working\n");
    for (long until = ms ? now_ns() + ms * MS : 0; !time_is_up(until, &open);) watch();
    for (ending = 1; !every(is_over); watch()) time_is_up(now_ns() + 1, &open);
    truth_add("ok {");
    const char *comma = "";
    for (int i = 0; i < KINDS; i++) {
        if (!all[i].round) continue;
        truth_add("%s\"%s\":%ld", comma, all[i].name, (long)all[i].rounds);
        comma = ",";
    }
    truth_add("}\n");
    gives("write", write(1, truth_text, truth_len), (long)truth_len);
    _exit(0);
}
