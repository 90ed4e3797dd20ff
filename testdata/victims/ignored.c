// Signals that the program ignores arrive while it waits in calls that a signal would break off.
//
//   ignored [MILLISECONDS=150]
//
// Each call waits with that timeout while another thread sends one signal: SIGCHLD, SIGURG and
// SIGWINCH (ignored by default), SIGUSR1 (SIG_IGN), or SIGUSR2, which has a handler. The kernel does
// not wake a thread for the first four. "answers" has a word for each pair, in that order: "timeout",
// "EINTR", or another errno.
// maptrail must say: nothing; the answers must be as bare (EINTR for the handler only).
#include "truth.h"
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/time.h>

static long timeout;
static struct timespec wait_time;

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
        struct timeval limit = {timeout / 1000, timeout % 1000 * 1000};
        check(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), "setsockopt");
    }
    char byte;
    return recv(pair[0], &byte, 1, 0);
}

static long in_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    return sigtimedwait(&set, NULL, &wait_time);
}

static long in_semtimedop(void) {
    static int id = -1;
    if (id < 0) {
        id = semget(IPC_PRIVATE, 1, 0600);
        check(id, "semget");
    }
    struct sembuf op = {0, -1, 0};
    long result = semtimedop(id, &op, 1, &wait_time);
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

static void *send_signal(void *signal) {
    struct timespec third = {0, timeout * 1000000 / 3};
    nanosleep(&third, NULL);
    pthread_kill(waiting, (int)(long)signal);
    return NULL;
}

int main(int argc, char **argv) {
    static long (*const calls[])(void) = {in_epoll_wait, in_recv, in_sigtimedwait, in_semtimedop, in_poll};
    static const int signals[] = {SIGCHLD, SIGURG, SIGWINCH, SIGUSR1, SIGUSR2};
    timeout = arg(argc, argv, 1, 150);
    wait_time = (struct timespec){timeout / 1000, timeout % 1000 * 1000000};
    waiting = pthread_self();
    signal(SIGUSR1, SIG_IGN);
    struct sigaction caught = {.sa_handler = handler};
    check(sigaction(SIGUSR2, &caught, NULL), "sigaction");
    static char answers[600];
    char *at = answers;
    for (size_t c = 0; c < sizeof calls / sizeof *calls; c++) {
        for (size_t s = 0; s < sizeof signals / sizeof *signals; s++) {
            pthread_t sender;
            if ((errno = pthread_create(&sender, NULL, send_signal, (void *)(long)signals[s]))) die("pthread_create");
            errno = 0;
            const char *word = answer(calls[c]());
            pthread_join(sender, NULL);
            at = stpcpy(stpcpy(at, word), " ");
        }
    }
    truth_begin("ignored");
    truth_word("answers", answers);
    truth_end();
    return 0;
}
