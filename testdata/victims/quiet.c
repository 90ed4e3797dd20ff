// A program at rest: threads that wait in calls of different sorts, each with a signal mask of its own.
//
//   quiet
//
// Prints `working` when all threads wait. When its standard input ends it prints `ok` and is gone; but if one
// of the waits has come back it prints `WRONG CALL` at once, and ends with exit code 1.
// maptrail must leave every mask, disposition and mapping as it was, and no thread may wake.
#include "truth.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static struct timespec hours = {100000, 0};

static void in_epoll_wait(void) {
    struct epoll_event event;
    epoll_wait(epoll_create1(0), &event, 1, -1);
}

static void in_poll(void) { poll(NULL, 0, 100000000); }

static void in_nanosleep(void) { nanosleep(&hours, NULL); }

static void in_futex(void) {
    static unsigned word;
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &hours, NULL, 0);
}

static void in_read(void) {
    int ends[2];
    char byte;
    check(pipe(ends), "pipe");
    if (read(ends[0], &byte, 1)) return;
}

static void in_recv(void) {
    int ends[2];
    char byte;
    struct timeval limit = {100000, 0};
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
    check(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), "setsockopt");
    recv(ends[0], &byte, 1, 0);
}

static void in_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 9);
    sigtimedwait(&set, NULL, &hours);
}

static void in_sigsuspend(void) {
    sigset_t all;
    sigfillset(&all);
    sigsuspend(&all);
}

static const struct wait {
    const char *name;
    void (*wait)(void);
} waits[] = {
    {"epoll_wait", in_epoll_wait}, {"poll", in_poll}, {"nanosleep", in_nanosleep},
    {"futex", in_futex},           {"read", in_read}, {"recv", in_recv},
    {"sigtimedwait", in_sigtimedwait}, {"sigsuspend", in_sigsuspend},
};
enum { WAITS = sizeof waits / sizeof *waits };
static atomic_int tids[WAITS];

static void *wait_on(void *which) {
    const struct wait *mine = which;
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + (int)(mine - waits));
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    tids[mine - waits] = gettid();
    mine->wait();
    dprintf(1, "WRONG %s\n", mine->name);
    _exit(1);
}

static void handler(int number) { (void)number; }

// Whether a thread has come to rest.
static int sleeps(int tid) {
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    FILE *file = tid ? fopen(path, "r") : NULL;
    if (!file) return 0;
    char *line = fgets(text, sizeof text, file);
    fclose(file);
    return line && strstr(line, ") S ");
}

int main(void) {
    signal(SIGUSR1, SIG_IGN);
    signal(SIGUSR2, handler);
    for (long i = 0; i < WAITS; i++) {
        pthread_t id;
        if ((errno = pthread_create(&id, NULL, wait_on, (void *)&waits[i]))) die("pthread_create");
    }
    for (long i = 0; i < WAITS; i++)
        while (!sleeps(tids[i])) sleep_us(1000);
    dprintf(1, "working\n");
    char byte;
    while (read(0, &byte, 1) > 0) {}
    dprintf(1, "ok\n");
    return 0;
}
