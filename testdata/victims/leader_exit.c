// The main thread leaves first; the others go on mapping and leave in any order.
//
//   leader_exit [THREADS=12] [ROUNDS=200] [CODE=9]
//
// main calls pthread_exit. Each thread maps and unmaps ROUNDS times (churn_after_leader) and leaks 3
// pages at its end (leak_after_leader); they end in the order 5, 10, 3, 8, ... (steps of 5). The last
// prints the truth and exits the process with CODE.
// maptrail must say: leak_after_leader holds THREADS * 3 pages; the exit code is CODE.
#include "truth.h"
#include <pthread.h>

static struct kind leaks = {.name = "leak_after_leader"}, churn = {.name = "churn_after_leader"};
static long threads, rounds, code;
static atomic_long turn;

static void *map(size_t pages) {
    void *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), PAGE);
    return p;
}

FRAME void leak_after_leader(void) {
    map(3);
    made(&leaks, 3 * PAGE);
}

FRAME void churn_after_leader(void) {
    void *p = map(5);
    made(&churn, 5 * PAGE);
    check(munmap(p, 5 * PAGE), "munmap");
    released(&churn, 5 * PAGE);
}

// The thread's place in the order of exits: the inverse of a step of 5 round the threads.
static long place(long number) {
    long at = 0;
    for (long i = 0; i < threads; i++) {
        at = (at + 5) % threads;
        if (at == number) return i;
    }
    return number;
}

static void *worker(void *number) {
    for (long i = 0; i < rounds; i++) churn_after_leader();
    long mine = place((long)number);
    while (atomic_load(&turn) != mine) usleep(200);
    leak_after_leader();
    if (mine < threads - 1) {
        atomic_fetch_add(&turn, 1);
        return NULL;
    }
    truth_begin("leader_exit");
    truth_kind(&leaks);
    truth_kind(&churn);
    truth_end();
    _exit((int)code);
}

int main(int argc, char **argv) {
    threads = arg(argc, argv, 1, 12);
    rounds = arg(argc, argv, 2, 200);
    code = arg(argc, argv, 3, 9);
    if (threads % 5 == 0) threads++; // so that steps of 5 reach every thread
    pthread_t id;
    for (long i = 0; i < threads; i++)
        if ((errno = pthread_create(&id, NULL, worker, (void *)i))) die("pthread_create");
    pthread_exit(NULL);
}
