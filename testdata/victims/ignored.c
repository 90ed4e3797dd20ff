// Signals that the program ignores arrive while it waits in calls that a signal would break off.
//
//   ignored [MILLISECONDS=150]
//
// Each call waits with that timeout (with a hundred times that, where it is to be broken off) while another thread sends one signal: SIGCHLD, SIGURG and
// SIGWINCH (ignored by default), SIGUSR1 (SIG_IGN), or SIGUSR2, which has a handler. The kernel does
// not wake a thread for the first four. "answers" has a word for each pair, in that order: "timeout",
// "EINTR", or another errno.
// "stopped" has the answer of an epoll_wait that a SIGSTOP and a SIGCONT came in: that breaks it off.
// maptrail must say: nothing; the answers must be as bare (EINTR for the handler and the stop only).
#include "truth.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

static long shortly, timeout;
static atomic_int answered;

static void handler(int signal) { (void)signal; }

static long in_epoll_wait(void) {
    static int epoll = -1;
    if (epoll < 0) epoll = epoll_create1(0);
    struct epoll_event event;
    return epoll_wait(epoll, &event, 1, (int)timeout);
}

static long in_recv(void) {
    static int pair[2] = {-1, -1};
    if (pair[0] < 0) {
        check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    }
    struct timeval limit = {timeout / 1000, timeout % 1000 * 1000};
    check(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), "setsockopt");
    char byte;
    return recv(pair[0], &byte, 1, 0);
}

static long in_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    struct timespec limit = {timeout / 1000, timeout % 1000 * 1000000};
    return sigtimedwait(&set, NULL, &limit);
}

static long in_semtimedop(void) {
    static int id = -1;
    if (id < 0) {
        id = semget(IPC_PRIVATE, 1, 0600);
        check(id, "semget");
    }
    struct sembuf op = {0, -1, 0};
    struct timespec limit = {timeout / 1000, timeout % 1000 * 1000000};
    long result = semtimedop(id, &op, 1, &limit);
    int error = errno;
    semctl(id, 0, IPC_RMID);
    id = -1;
    errno = error;
    return result;
}

static long in_poll(void) { return poll(NULL, 0, (int)timeout); }

static const char *answer(long result) {
    if (result == 0 || errno == EAGAIN || errno == EWOULDBLOCK) return "timeout";
    const char *name = strerrorname_np(errno);
    return name ? name : "?";
}

static pthread_t waiting;

static void a_third(void) {
    struct timespec third = {0, shortly * 1000000 / 3};
    nanosleep(&third, NULL);
}

// One that is to break the call off is sent again and again: the call may not have begun.
static void *send_signal(void *signal) {
    int number = (int)(long)signal;
    do {
        a_third();
        pthread_kill(waiting, number);
    } while (number == SIGUSR2 && !answered);
    return NULL;
}

int main(int argc, char **argv) {
    static long (*const calls[])(void) = {in_epoll_wait, in_recv, in_sigtimedwait, in_semtimedop, in_poll};
    static const int signals[] = {SIGCHLD, SIGURG, SIGWINCH, SIGUSR1, SIGUSR2};
    shortly = arg(argc, argv, 1, 150);
    waiting = pthread_self();
    signal(SIGUSR1, SIG_IGN);
    struct sigaction caught = {.sa_handler = handler};
    check(sigaction(SIGUSR2, &caught, NULL), "sigaction");
    static char answers[600];
    char *at = answers;
    for (size_t c = 0; c < sizeof calls / sizeof *calls; c++) {
        for (size_t s = 0; s < sizeof signals / sizeof *signals; s++) {
            pthread_t sender;
            answered = 0;
            if ((errno = pthread_create(&sender, NULL, send_signal, (void *)(long)signals[s]))) die("pthread_create");
            timeout = signals[s] == SIGUSR2 ? shortly * 100 : shortly;
            errno = 0;
            const char *word = answer(calls[c]());
            answered = 1;
            pthread_join(sender, NULL);
            at = stpcpy(stpcpy(at, word), " ");
        }
    }
    timeout = shortly * 100;
    int end[2];
    check(pipe(end), "pipe");
    pid_t stopper = fork();
    check(stopper, "fork");
    if (stopper == 0) {
        close(end[1]);
        struct pollfd ended = {.fd = end[0], .events = POLLIN};
        while (poll(&ended, 1, (int)shortly / 3) == 0) {
            kill(getppid(), SIGSTOP);
            a_third();
            kill(getppid(), SIGCONT);
        }
        _exit(0);
    }
    errno = 0;
    const char *stopped = answer(in_epoll_wait());
    close(end[1]);
    check(waitpid(stopper, NULL, 0), "waitpid");
    truth_begin("ignored");
    truth_word("answers", answers);
    truth_word("stopped", stopped);
    truth_end();
    return 0;
}
