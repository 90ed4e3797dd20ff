// The kinds of work of `unharmed` that wait: sleeps, events, transfers, signals, timers.
#include "unharmed.h"
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>

enum { FOREVER = -1, A_MINUTE = 60000000, US = 1000, MS = 1000000 };

static struct timespec after(long us) { return (struct timespec){us / 1000000, us % 1000000 * 1000}; }

// ---- Sleeps.

static void work_sleep(void) {
    long us = 500 + up_to(3000), begin = now_ns();
    struct timespec t = after(us);
    gives("nanosleep", nanosleep(&t, NULL), 0);
    lasted("nanosleep", begin, us);
    begin = now_ns();
    gives("clock_nanosleep", clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL), 0);
    lasted("clock_nanosleep", begin, us);
    begin = now_ns();
    t = after(begin / US + us + 1);
    gives("absolute clock_nanosleep", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0);
    lasted("absolute clock_nanosleep", begin, us);
}

// ---- Calls that wait for one event: in time, for ever, or until a timeout.

// A wait answers 1 for the event and 0 for the timeout.
static long answer(long result, int timeout_error) {
    return result == -1 && errno == timeout_error ? 0 : result == -1 ? -1 : 1;
}

static void waits_about(long tick_us, const char *call, long (*wait)(long us), void (*cause)(long), long arg) {
    static const long limits[] = {FOREVER, A_MINUTE};
    long begin = now_ns(), us = 1000 + tick_us + up_to(4000);
    gives(call, wait(us), 0);
    lasted(call, begin, us - tick_us);
    for (int i = 0; i < 2; i++) {
        later(up_to(2000), cause, arg);
        gives(call, wait(limits[i]), 1);
        finished();
    }
}

static void waits(const char *call, long (*wait)(long us), void (*cause)(long), long arg) {
    waits_about(0, call, wait, cause, arg);
}

// The kernel counts the timeouts of sockets in ticks: whatever wakes a thread in the last one ends its wait.
static void waits_in_ticks(const char *call, long (*wait)(long us), void (*cause)(long), long arg) {
    struct timespec tick;
    clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
    waits_about(tick.tv_nsec / US, call, wait, cause, arg);
}

static _Thread_local int event = -1;

static void raise_event(long fd) { gives("eventfd_write", eventfd_write((int)fd, 1), 0); }

static long take_event(long result) {
    eventfd_t count;
    if (result == 1) {
        gives("eventfd_read", eventfd_read(event, &count), 0);
        gives("the count of an eventfd", (long)count, 1);
    }
    return result;
}

static void event_waits(const char *call, long (*wait)(long us)) {
    if (event < 0) event = eventfd(0, 0);
    holds("eventfd failed", event >= 0);
    waits(call, wait, raise_event, event);
}

// Rounded up, for calls that count milliseconds.
static int in_ms(long us) { return us < 0 ? -1 : (int)((us + 999) / 1000); }

static long in_epoll(long us) {
    static int epoll = -1;
    struct epoll_event wanted = {.events = EPOLLIN};
    if (epoll < 0) {
        epoll = epoll_create1(0);
        gives("epoll_ctl", epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted), 0);
    }
    return take_event(epoll_wait(epoll, &wanted, 1, in_ms(us)));
}

static long in_poll(long us) {
    struct pollfd wanted = {.fd = event, .events = POLLIN};
    return take_event(poll(&wanted, 1, in_ms(us)));
}

static long in_ppoll(long us) {
    struct pollfd wanted = {.fd = event, .events = POLLIN};
    struct timespec limit = after(us);
    return take_event(ppoll(&wanted, 1, us < 0 ? NULL : &limit, NULL));
}

static long in_select(long us) {
    fd_set wanted;
    FD_ZERO(&wanted);
    FD_SET(event, &wanted);
    struct timeval limit = {us / 1000000, us % 1000000};
    return take_event(select(event + 1, &wanted, NULL, NULL, us < 0 ? NULL : &limit));
}

static long in_pselect(long us) {
    fd_set wanted;
    FD_ZERO(&wanted);
    FD_SET(event, &wanted);
    struct timespec limit = after(us);
    return take_event(pselect(event + 1, &wanted, NULL, NULL, us < 0 ? NULL : &limit, NULL));
}

static long in_aio(long us) {
    static aio_context_t context;
    static int submitted;
    struct iocb poll_event = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (unsigned)event, .aio_buf = POLLIN};
    struct iocb *list[] = {&poll_event};
    struct io_event done;
    struct timespec limit = after(us);
    if (!context) gives("io_setup", syscall(SYS_io_setup, 4, &context), 0);
    if (!submitted) gives("io_submit", syscall(SYS_io_submit, context, 1L, list), 1);
    long result = syscall(SYS_io_getevents, context, 1L, 1L, &done, us < 0 ? NULL : &limit);
    submitted = result == 0;
    return take_event(result);
}

static void work_epoll(void) { event_waits("epoll_wait", in_epoll); }
static void work_poll(void) { event_waits("poll", in_poll); }
static void work_ppoll(void) { event_waits("ppoll", in_ppoll); }
static void work_select(void) { event_waits("select", in_select); }
static void work_pselect(void) { event_waits("pselect", in_pselect); }
static void work_aio(void) { event_waits("io_getevents", in_aio); }

static unsigned word;

static long in_futex(long us) {
    struct timespec limit = after(us);
    while (!__atomic_load_n(&word, __ATOMIC_ACQUIRE)) {
        long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, us < 0 ? NULL : &limit, NULL, 0);
        if (result < 0 && errno != EAGAIN) return answer(result, ETIMEDOUT);
    }
    __atomic_store_n(&word, 0, __ATOMIC_RELEASE);
    return 1;
}

static long in_futex_until(long us) {
    struct timespec limit = after(now_ns() / US + us + 1);
    while (!__atomic_load_n(&word, __ATOMIC_ACQUIRE)) {
        long result = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, us < 0 ? NULL : &limit, NULL,
                              FUTEX_BITSET_MATCH_ANY);
        if (result < 0 && errno != EAGAIN) return answer(result, ETIMEDOUT);
    }
    __atomic_store_n(&word, 0, __ATOMIC_RELEASE);
    return 1;
}

static void wake(long value) {
    __atomic_store_n(&word, (unsigned)value, __ATOMIC_RELEASE);
    holds("a futex cannot be woken", syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) >= 0);
}

static void work_futex(void) {
    waits("FUTEX_WAIT", in_futex, wake, 1);
    waits("FUTEX_WAIT_BITSET", in_futex_until, wake, 1);
}

static int semaphore;

static long in_semtimedop(long us) {
    struct sembuf take = {0, -1, 0};
    struct timespec limit = after(us);
    return answer(semtimedop(semaphore, &take, 1, us < 0 ? NULL : &limit), EAGAIN);
}

static void post(long id) {
    struct sembuf give = {0, 1, 0};
    gives("semop", semop((int)id, &give, 1), 0);
}

static void work_semaphore(void) {
    semaphore = semget(IPC_PRIVATE, 1, 0600);
    holds("semget failed", semaphore >= 0);
    waits("semtimedop", in_semtimedop, post, semaphore);
    gives("semctl", semctl(semaphore, 0, IPC_RMID), 0);
}

static int waited_for, socket_pair[2], listener;

static long in_sigtimedwait(long us) {
    sigset_t set;
    siginfo_t info;
    struct timespec limit = after(us);
    sigemptyset(&set);
    sigaddset(&set, waited_for);
    long result = us < 0 ? sigwaitinfo(&set, &info) : sigtimedwait(&set, &info, &limit);
    if (result > 0) {
        gives("the signal", result, waited_for);
        gives("its value", info.si_value.sival_int, 4711);
        gives("its code", info.si_code, SI_QUEUE);
        gives("its sender", info.si_pid, getpid());
    }
    return answer(result, EAGAIN);
}

static void queue(long number) {
    union sigval value = {.sival_int = 4711};
    gives("pthread_sigqueue", pthread_sigqueue(partner->owner, (int)number, value), 0);
}

static void work_sigtimedwait(void) {
    waited_for = SIGRTMIN + 1;
    waits("sigtimedwait", in_sigtimedwait, queue, waited_for);
}

static void limit_wait(int fd, int option, long us) {
    struct timeval limit = {us < 0 ? 0 : us / 1000000, us < 0 ? 0 : us % 1000000};
    gives("setsockopt", setsockopt(fd, SOL_SOCKET, option, &limit, sizeof limit), 0);
}

static long in_recv(long us) {
    char byte;
    limit_wait(socket_pair[0], SO_RCVTIMEO, us);
    return answer(recv(socket_pair[0], &byte, 1, 0), EAGAIN);
}

static void send_byte(long fd) { gives("send", send((int)fd, "x", 1, 0), 1); }

static void work_recv(void) {
    if (!socket_pair[1]) gives("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, socket_pair), 0);
    waits_in_ticks("recv", in_recv, send_byte, socket_pair[1]);
}

static long in_accept(long us) {
    limit_wait(listener, SO_RCVTIMEO, us);
    int fd = accept(listener, NULL, NULL);
    if (fd >= 0) gives("close", close(fd), 0);
    return answer(fd, EAGAIN);
}

static void connect_to(long fd) {
    struct sockaddr_un name;
    socklen_t size = sizeof name;
    gives("getsockname", getsockname((int)fd, (struct sockaddr *)&name, &size), 0);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    gives("connect", connect(client, (struct sockaddr *)&name, size), 0);
    gives("close", close(client), 0);
}

static void work_accept(void) {
    if (!listener) {
        // The kernel finds a name.
        struct sockaddr_un name = {.sun_family = AF_UNIX};
        listener = socket(AF_UNIX, SOCK_STREAM, 0);
        gives("bind", bind(listener, (struct sockaddr *)&name, sizeof name.sun_family), 0);
        gives("listen", listen(listener, 4), 0);
    }
    waits_in_ticks("accept", in_accept, connect_to, listener);
}

// ---- Transfers that are larger than what they go through.

enum { LARGE = 1 << 20 };

static unsigned char byte_at(long i) { return (unsigned char)(i * 7 + i / 251); }

static unsigned char *large(void) {
    static _Thread_local unsigned char *bytes;
    if (!bytes) bytes = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return bytes;
}

static void fill(unsigned char *bytes) {
    for (long i = 0; i < LARGE; i++) bytes[i] = byte_at(i);
}

static void right(const unsigned char *bytes) {
    for (long i = 0; i < LARGE; i++)
        if (bytes[i] != byte_at(i)) wrong("byte %ld of a transfer is %d, not %d", i, bytes[i], byte_at(i));
}

static void read_slowly(long fd) {
    unsigned char *bytes = large();
    for (long got = 0; got < LARGE;) {
        long n = read((int)fd, bytes + got, (size_t)(LARGE - got < 50000 ? LARGE - got : 50000));
        holds("a read failed", n > 0);
        got += n;
        rest(1 + up_to(300));
    }
    right(bytes);
}

static void write_slowly(long fd) {
    unsigned char *bytes = large();
    fill(bytes);
    for (long put = 0; put < LARGE;) {
        long n = LARGE - put < 50000 ? LARGE - put : 50000;
        gives("a small send", send((int)fd, bytes + put, (size_t)n, 0), n);
        put += n;
        rest(1 + up_to(300));
    }
}

static void work_pipe(void) {
    static int ends[2];
    if (!ends[1]) gives("pipe", pipe(ends), 0);
    later(0, read_slowly, ends[0]);
    fill(large());
    gives("a large write", write(ends[1], large(), LARGE), LARGE);
    finished();
}

static void work_socket(void) {
    static int ends[2];
    if (!ends[1]) gives("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    later(0, read_slowly, ends[0]);
    fill(large());
    gives("a large send", send(ends[1], large(), LARGE, 0), LARGE);
    finished();
    memset(large(), 0, LARGE);
    later(0, write_slowly, ends[0]);
    gives("recv with MSG_WAITALL", recv(ends[1], large(), LARGE, MSG_WAITALL), LARGE);
    right(large());
    finished();
}

// ---- Signals: all arrive, in order, with their data; a call is interrupted if, and only if, a handler ran.

enum { BURST = 32 };

static void only(int number, sigset_t *set) {
    sigemptyset(set);
    sigaddset(set, number);
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | flags};
    gives("sigaction", sigaction(number, &action, NULL), 0);
}

static void on_alternate_stack(void) {
    stack_t stack;
    gives("sigaltstack", sigaltstack(NULL, &stack), 0);
    gives("the flags of a handler's stack", stack.ss_flags, SS_ONSTACK);
}

static atomic_long arrived[2];

static void on_queued(int number, siginfo_t *info, void *context) {
    (void)context;
    int which = number - (SIGRTMIN + 2), error = errno;
    gives("a queued signal's value", info->si_value.sival_int, atomic_fetch_add(&arrived[which], 1));
    gives("a queued signal's code", info->si_code, SI_QUEUE);
    gives("a queued signal's sender", info->si_pid, getpid());
    on_alternate_stack();
    errno = error;
}

// To the thread, and to the process: this one takes what comes to the process.
static void queue_burst(long base) {
    for (int i = 0; i < BURST; i++) {
        union sigval value = {.sival_int = i};
        gives("pthread_sigqueue", pthread_sigqueue(partner->owner, (int)base, value), 0);
        gives("sigqueue", sigqueue(getpid(), (int)base + 1, value), 0);
        if (up_to(4) == 0) rest(1 + up_to(100));
    }
}

static void work_queued(void) {
    int base = SIGRTMIN + 2;
    sigset_t both;
    only(base, &both);
    sigaddset(&both, base + 1);
    handle(base, on_queued, SA_RESTART);
    handle(base + 1, on_queued, SA_RESTART);
    arrived[0] = arrived[1] = 0;
    gives("pthread_sigmask", pthread_sigmask(SIG_UNBLOCK, &both, NULL), 0);
    later(0, queue_burst, base);
    while (arrived[0] < BURST || arrived[1] < BURST) {
        void *p = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        touch(p, 4 * PAGE);
        gives("munmap", munmap(p, 4 * PAGE), 0);
    }
    finished();
    gives("pthread_sigmask", pthread_sigmask(SIG_BLOCK, &both, NULL), 0);
    rest(3000);
}

static atomic_long handled;

static void on_interrupt(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    gives("an interrupting signal's value", info->si_value.sival_int, 4711);
    atomic_fetch_add(&handled, 1);
}

static int interrupting, letters[2];

static long by_sigsuspend(const sigset_t *open) { return sigsuspend(open); }

static long by_ppoll(const sigset_t *open) { return ppoll(NULL, 0, NULL, open); }

static long by_pselect(const sigset_t *open) { return pselect(0, NULL, NULL, NULL, NULL, open); }

static int without_epoll;

static long by_epoll(const sigset_t *open) {
    static int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(0);
    struct epoll_event none;
    return epoll_pwait(epoll, &none, 1, -1, open);
}

static void queue_and_write(long number) {
    queue(number);
    rest(1 + up_to(500));
    gives("write", write(letters[1], "x", 1), 1);
}

static void work_interrupted(void) {
    static const struct {
        const char *name;
        long (*wait)(const sigset_t *);
    } calls[] = {{"sigsuspend", by_sigsuspend}, {"ppoll", by_ppoll}, {"pselect", by_pselect}, {"epoll_pwait", by_epoll}};
    if (!interrupting) {
        interrupting = SIGRTMIN + 4;
        gives("pipe", pipe(letters), 0);
    }
    sigset_t open, one;
    pthread_sigmask(SIG_SETMASK, NULL, &open);
    sigdelset(&open, interrupting);
    handle(interrupting, on_interrupt, 0);
    for (size_t i = 0; i < sizeof calls / sizeof *calls - (size_t)without_epoll; i++) {
        handled = 0;
        later(up_to(2000), queue, interrupting);
        fails(calls[i].name, calls[i].wait(&open), EINTR);
        if (handled != 1) wrong("%s ended before a handler ran", calls[i].name);
        finished();
    }
    // And a read goes on after a handler with SA_RESTART.
    char byte;
    handled = 0;
    only(interrupting, &one);
    handle(interrupting, on_interrupt, SA_RESTART);
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    later(up_to(1000), queue_and_write, interrupting);
    gives("a read with SA_RESTART", read(letters[0], &byte, 1), 1);
    gives("the count of handlers that ran", handled, 1);
    finished();
    pthread_sigmask(SIG_BLOCK, &one, NULL);
}

// ---- Timers: every expiration is counted, none comes early.

// How often a timer that began at `first` has expired until now.
static long due(long first, long now) { return now < first ? 0 : (now - first) / MS + 1; }

static struct itimerspec each_ms_from(long first) {
    return (struct itimerspec){.it_value = {first / 1000000000, first % 1000000000}, .it_interval.tv_nsec = MS};
}

static void work_timerfd(void) {
    static int timer = -1;
    if (timer < 0) timer = timerfd_create(CLOCK_MONOTONIC, 0);
    long first = now_ns() + MS, sum = 0;
    struct itimerspec when = each_ms_from(first);
    gives("timerfd_settime", timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL), 0);
    for (int i = 0; i < 5; i++) {
        unsigned long count;
        if (up_to(2)) rest(1 + up_to(3000));
        long least = due(first, now_ns());
        gives("read of a timerfd", read(timer, &count, sizeof count), sizeof count);
        sum += (long)count;
        long most = due(first, now_ns());
        if (sum < least || sum > most) wrong("a timerfd counted %ld, not %ld to %ld", sum, least, most);
    }
    when.it_value = (struct timespec){0, 0};
    gives("timerfd_settime", timerfd_settime(timer, 0, &when, NULL), 0);
}

static atomic_long expired;
static long timer_first, timer_seen;

static void on_timer(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    gives("a timer signal's code", info->si_code, SI_TIMER);
    gives("a timer signal's value", info->si_value.sival_int, 4711);
    long sum = atomic_fetch_add(&expired, 1 + info->si_overrun) + 1 + info->si_overrun;
    long least = due(timer_first, timer_seen), most = due(timer_first, now_ns());
    if (sum < least || sum > most) wrong("a timer expired %ld times, not %ld to %ld", sum, least, most);
    timer_seen = now_ns();
}

static void work_timer(void) {
    static timer_t timer;
    static int number;
    sigset_t one;
    if (!number) {
        number = SIGRTMIN + 5;
        handle(number, on_timer, SA_RESTART);
        struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number, .sigev_value.sival_int = 4711};
        event._sigev_un._tid = gettid();
        gives("timer_create", timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    }
    // One that sigtimedwait takes: it comes once.
    only(number, &one);
    siginfo_t info;
    struct itimerspec when = {.it_value.tv_nsec = 1 + up_to(2 * MS)};
    struct timespec minute = after(A_MINUTE), nothing = {0, 0};
    long begin = now_ns();
    gives("timer_settime", timer_settime(timer, 0, &when, NULL), 0);
    gives("sigtimedwait for a timer", sigtimedwait(&one, &info, &minute), number);
    lasted("a timer", begin, when.it_value.tv_nsec / US);
    gives("a timer signal's code", info.si_code, SI_TIMER);
    fails("sigtimedwait after a timer", sigtimedwait(&one, NULL, &nothing), EAGAIN);
    // Ones that come again and again, in the middle of a program that runs or sleeps.
    expired = 0;
    timer_seen = 0;
    timer_first = now_ns() + MS;
    when = each_ms_from(timer_first);
    gives("timer_settime", timer_settime(timer, TIMER_ABSTIME, &when, NULL), 0);
    pthread_sigmask(SIG_UNBLOCK, &one, NULL);
    while (expired < 5) {
        void *p = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        gives("munmap", munmap(p, PAGE), 0);
        struct timespec some = after(up_to(400));
        if (nanosleep(&some, NULL) < 0) fails("nanosleep", -1, EINTR);
    }
    pthread_sigmask(SIG_BLOCK, &one, NULL);
    when.it_value = nothing;
    gives("timer_settime", timer_settime(timer, 0, &when, NULL), 0);
    // One may have come between the two; newer kernels drop it.
    sigtimedwait(&one, NULL, &nothing);
}
