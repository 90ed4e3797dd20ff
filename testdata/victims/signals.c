// Signals of all sorts, with their data, while memory calls go on.
//
//   signals [COUNT=500]
//
//   queued     COUNT real-time signals that the program queues to itself while they are blocked: all
//              arrive, in order, with their values and si_code; every tenth handler maps a page
//              (map_in_handler)
//   fired      COUNT more from a child while this process maps and unmaps (churn_under_fire)
//   directed   signals to one thread among others (rt_tgsigqueueinfo by pthread_sigqueue)
//   timer      50 expiries of a one-shot POSIX timer, with its value
//   faults     SIGSEGV handlers that make the page accessible by mprotect and go on (fix_fault)
//   traps      SIGTRAP by int3, whose handler sees it as one of its own
//   stops      children that stop themselves and are continued: the parent sees both
//   own_stops  SIGSTOP sent to the process itself, continued from outside
//   waited     signals taken by sigwaitinfo, with their values
//   eintr      a sleep interrupted by a handler gives EINTR; a read with SA_RESTART does not
// Prints what arrived: "queued" to "waited" are counts of what came intact, "wrong" what did not.
// maptrail must say: nothing of it changes; map_in_handler holds its pages, churn_under_fire nothing.
#include "truth.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

static struct kind mapped = {.name = "map_in_handler"}, churn = {.name = "churn_under_fire"},
                   fixes = {.name = "fix_fault"};
static atomic_long queued, fired, directed, timer_hits, faults, traps, conts, alarms, wrong;
static long count;
static pid_t sender;
static char *guarded;

static void expect(int good) {
    if (!good) atomic_fetch_add(&wrong, 1);
}

FRAME void map_in_handler(void) {
    void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), PAGE);
    made(&mapped, PAGE);
}

static void on_queued(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    long n = atomic_fetch_add(&queued, 1);
    expect(info->si_value.sival_int == n && info->si_code == SI_QUEUE && info->si_pid == getpid());
    if (n % 10 == 0) map_in_handler();
}

static void on_fired(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    long n = atomic_fetch_add(&fired, 1);
    expect(info->si_value.sival_int == n && info->si_code == SI_QUEUE && info->si_pid == sender);
}

static pthread_t target_thread;
static void on_directed(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    long n = atomic_fetch_add(&directed, 1);
    expect(info->si_value.sival_int == n && pthread_equal(pthread_self(), target_thread));
}

static void on_timer(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    expect(info->si_code == SI_TIMER && info->si_value.sival_int == 4711);
    atomic_fetch_add(&timer_hits, 1);
}

FRAME void fix_fault(void *page) { check(mprotect(page, PAGE, PROT_READ | PROT_WRITE), "mprotect"); }

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    char *page = (char *)((unsigned long)info->si_addr & ~(PAGE - 1));
    if (page < guarded || page >= guarded + 64 * PAGE) _exit(97);
    expect(info->si_code == SEGV_ACCERR);
    atomic_fetch_add(&faults, 1);
    fix_fault(page);
}

static void on_trap(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    expect(info->si_code == SI_KERNEL || info->si_code == TRAP_BRKPT);
    atomic_fetch_add(&traps, 1);
}

static void on_cont(int number) { (void)number, atomic_fetch_add(&conts, 1); }
static void on_alarm(int number) { (void)number, atomic_fetch_add(&alarms, 1); }

static void install(int number, void (*handler)(int, siginfo_t *, void *)) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    check(sigaction(number, &action, NULL), "sigaction");
}

static void block(int number, int how) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    pthread_sigmask(how, &set, NULL);
}

static void wait_for(atomic_long *counter, long n) {
    while (atomic_load(counter) < n) usleep(1000);
}

static void queue_to_self(void) {
    int number = SIGRTMIN + 1;
    install(number, on_queued);
    block(number, SIG_BLOCK);
    for (long i = 0; i < count; i++)
        check(sigqueue(getpid(), number, (union sigval){.sival_int = (int)i}), "sigqueue");
    block(number, SIG_UNBLOCK);
    wait_for(&queued, count);
}

FRAME void churn_under_fire(void) {
    void *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), PAGE);
    made(&churn, 4 * PAGE);
    check(munmap(p, 4 * PAGE), "munmap");
    released(&churn, 4 * PAGE);
}

static void under_fire(void) {
    int number = SIGRTMIN + 2, go[2];
    install(number, on_fired);
    check(pipe(go), "pipe");
    sender = fork();
    check(sender, "fork");
    if (sender == 0) {
        char c;
        if (read(go[0], &c, 1) != 1) _exit(1);
        for (long i = 0; i < count; i++)
            check(sigqueue(getppid(), number, (union sigval){.sival_int = (int)i}), "sigqueue");
        _exit(0);
    }
    check(write(go[1], "", 1), "write");
    while (atomic_load(&fired) < count) churn_under_fire();
    check(waitpid(sender, NULL, 0), "waitpid");
}

static atomic_long stop_waiting;
static void *idle(void *nothing) {
    while (!atomic_load(&stop_waiting)) poll(NULL, 0, 5);
    return nothing;
}

static void to_one_thread(void) {
    pthread_t ids[4];
    install(SIGRTMIN + 3, on_directed);
    for (int i = 0; i < 4; i++) pthread_create(&ids[i], NULL, idle, NULL);
    target_thread = ids[2];
    for (int i = 0; i < 100; i++) {
        if ((errno = pthread_sigqueue(ids[2], SIGRTMIN + 3, (union sigval){.sival_int = i}))) die("pthread_sigqueue");
        wait_for(&directed, i + 1);
    }
    atomic_store(&stop_waiting, 1);
    for (int i = 0; i < 4; i++) pthread_join(ids[i], NULL);
}

static void by_timer(void) {
    timer_t timer;
    install(SIGRTMIN + 4, on_timer);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 4,
                             .sigev_value.sival_int = 4711};
    check(timer_create(CLOCK_MONOTONIC, &event, &timer), "timer_create");
    for (int i = 0; i < 50; i++) {
        struct itimerspec soon = {.it_value.tv_nsec = 1000000};
        check(timer_settime(timer, 0, &soon, NULL), "timer_settime");
        wait_for(&timer_hits, i + 1);
    }
    check(timer_delete(timer), "timer_delete");
}

static void synchronous(void) {
    install(SIGSEGV, on_fault);
    install(SIGTRAP, on_trap);
    guarded = check_map(mmap(NULL, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    for (int i = 0; i < 64; i++) ((volatile char *)guarded)[(unsigned)i * PAGE + 5] = 1;
    for (int i = 0; i < 20; i++) __asm__ volatile("int3");
}

static long stopped_children(void) {
    long seen = 0;
    for (int i = 0; i < 10; i++) {
        int status, ends[2];
        char c;
        check(pipe(ends), "pipe");
        pid_t pid = fork();
        check(pid, "fork");
        if (pid == 0) {
            raise(SIGSTOP);
            // Its end would hide that it was continued.
            _exit(read(ends[0], &c, 1) == 1 ? 6 : 1);
        }
        check(waitpid(pid, &status, WUNTRACED), "waitpid");
        int good = WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP;
        check(kill(pid, SIGCONT), "kill");
        check(waitpid(pid, &status, WCONTINUED), "waitpid");
        good = good && WIFCONTINUED(status);
        check(write(ends[1], "", 1), "write");
        close(ends[0]);
        close(ends[1]);
        check(waitpid(pid, &status, 0), "waitpid");
        seen += good && WIFEXITED(status) && WEXITSTATUS(status) == 6;
    }
    return seen;
}

// A child continues us again and again, in case that it came too early; more than once does no harm.
static long own_stops(void) {
    signal(SIGCONT, on_cont);
    pid_t child = fork();
    check(child, "fork");
    if (child == 0) {
        for (;;) {
            usleep(20000);
            if (kill(getppid(), SIGCONT)) _exit(1);
        }
    }
    long stops = 0;
    for (; stops < 5; stops++) {
        long before = atomic_load(&conts);
        check(kill(getpid(), SIGSTOP), "kill");
        wait_for(&conts, before + 1);
    }
    check(kill(child, SIGKILL), "kill");
    check(waitpid(child, NULL, 0), "waitpid");
    return stops;
}

static long waited(void) {
    int number = SIGRTMIN + 5;
    long good = 0;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    block(number, SIG_BLOCK);
    for (int i = 0; i < 50; i++) {
        siginfo_t info;
        check(sigqueue(getpid(), number, (union sigval){.sival_int = 3 * i}), "sigqueue");
        int got = sigwaitinfo(&set, &info);
        good += got == number && info.si_value.sival_int == 3 * i;
    }
    return good;
}

static const char *interrupted(void) {
    struct sigaction action = {.sa_handler = on_alarm};
    check(sigaction(SIGALRM, &action, NULL), "sigaction");
    ualarm(20000, 0);
    struct timespec t = {30, 0};
    if (nanosleep(&t, &t) != -1 || errno != EINTR) return "a sleep was not interrupted";
    // Now a read that restarts: the writer comes after the alarm.
    int ends[2];
    check(pipe(ends), "pipe");
    action.sa_flags = SA_RESTART;
    check(sigaction(SIGALRM, &action, NULL), "sigaction");
    pid_t pid = fork();
    check(pid, "fork");
    if (pid == 0) {
        check(kill(getppid(), SIGALRM), "kill");
        usleep(50000);
        _exit(write(ends[1], "x", 1) != 1);
    }
    char c = 0;
    if (read(ends[0], &c, 1) != 1 || c != 'x') return "a read did not restart";
    check(waitpid(pid, NULL, 0), "waitpid");
    return alarms == 2 ? "as it should be" : "an alarm is missing";
}

int main(int argc, char **argv) {
    count = arg(argc, argv, 1, 500);
    queue_to_self();
    under_fire();
    to_one_thread();
    by_timer();
    synchronous();
    long stops = stopped_children(), own = own_stops(), taken = waited();
    const char *eintr = interrupted();
    truth_begin("signals");
    truth_kind(&mapped);
    truth_kind(&churn);
    truth_kind(&fixes);
    truth_number("queued", queued);
    truth_number("fired", fired);
    truth_number("directed", directed);
    truth_number("timer", timer_hits);
    truth_number("faults", faults);
    truth_number("traps", traps);
    truth_number("stops", stops);
    truth_number("own_stops", own);
    truth_number("waited", taken);
    truth_word("eintr", eintr);
    truth_number("wrong", wrong);
    truth_end();
    return 0;
}
