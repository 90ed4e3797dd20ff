// Many threads map and unmap; one of them does not give back.
//
//   thread_leak [THREADS=64] [ROUNDS=100] [BYTES=65536]
//
// Each thread maps and unmaps BYTES, ROUNDS times (churn_in_thread). The thread in the middle, named
// "leaker", also leaks BYTES in each round (leak_in_thread). All stay alive to the end.
// maptrail must say: leak_in_thread holds ROUNDS * BYTES and is the worst stack; churn_in_thread holds
// nothing.
#include "truth.h"
#include <pthread.h>

static struct kind leaks = {.name = "leak_in_thread"}, churn = {.name = "churn_in_thread"};
static pthread_barrier_t all;
static long threads, rounds;
static size_t bytes;

static void *map(void) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), bytes);
    return p;
}

FRAME void leak_in_thread(void) {
    map();
    made(&leaks, bytes);
}

FRAME void churn_in_thread(void) {
    void *p = map();
    made(&churn, bytes);
    check(munmap(p, bytes), "munmap");
    released(&churn, bytes);
}

FRAME void *worker(void *number) {
    int leaker = (long)number == threads / 2;
    pthread_setname_np(pthread_self(), leaker ? "leaker" : "worker");
    pthread_barrier_wait(&all);
    for (long i = 0; i < rounds; i++) {
        if (leaker) leak_in_thread();
        churn_in_thread();
    }
    pthread_barrier_wait(&all);
    return NULL;
}

int main(int argc, char **argv) {
    threads = arg(argc, argv, 1, 64);
    rounds = arg(argc, argv, 2, 100);
    bytes = (size_t)arg(argc, argv, 3, 65536);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    pthread_barrier_init(&all, NULL, (unsigned)threads);
    for (long i = 0; i < threads; i++)
        if ((errno = pthread_create(&ids[i], NULL, worker, (void *)i))) die("pthread_create");
    for (long i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    truth_begin("thread_leak");
    truth_kind(&leaks);
    truth_kind(&churn);
    truth_number("threads", threads);
    truth_end();
    return 0;
}
