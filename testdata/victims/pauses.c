// How long a program is held up: threads that sleep in a loop and note how late they wake. They sleep one
// millisecond each, or so long that all together wake 4 times in a millisecond: more would keep a small
// machine, or a tracer, busy, and the pauses would be those of a queue.
//
//   pauses [THREADS=64]
//
// Prints `working` when every thread runs. Then it reads lines from standard input:
//   reset    forgets all pauses, and answers `reset`
//   report   answers {"threads":N,"pause_us":P,"at_ns":T,"median_us":M,"rounds":R} for the time since the
//            last reset: the longest time that lay between two wake-ups of any thread, less the sleep; the CLOCK_MONOTONIC instant at which it was over; the median over the threads of their
//            own longest pauses; and the rounds of the thread that made the fewest
// It ends with its input, and with exit code 1 if a sleep was interrupted or too short.
#include "truth.h"
#include <pthread.h>

enum { MOST = 4096, SHORTEST_NS = 1000000, TOGETHER = 4 };

static struct sleeper {
    atomic_long longest, at, rounds;
    atomic_int runs;
} sleepers[MOST];
static long threads, sleep_ns;

static void *sleeper(void *which) {
    struct sleeper *me = which;
    const struct timespec nap = {0, sleep_ns};
    long before = now_ns();
    me->runs = 1;
    for (;;) {
        if (nanosleep(&nap, NULL)) die("nanosleep");
        long now = now_ns(), late = now - before - sleep_ns;
        if (late < 0) {
            dprintf(2, "a sleep ended %ld ns early\n", -late);
            _exit(1);
        }
        if (late > me->longest) {
            me->longest = late;
            me->at = now;
        }
        atomic_fetch_add(&me->rounds, 1);
        before = now;
    }
    return NULL;
}

static int by_size(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

static void report(void) {
    static long pauses[MOST];
    struct sleeper *worst = &sleepers[0];
    long rounds = sleepers[0].rounds;
    for (long i = 0; i < threads; i++) {
        pauses[i] = sleepers[i].longest;
        if (pauses[i] > worst->longest) worst = &sleepers[i];
        if (sleepers[i].rounds < rounds) rounds = sleepers[i].rounds;
    }
    qsort(pauses, (size_t)threads, sizeof *pauses, by_size);
    dprintf(1, "{\"threads\":%ld,\"pause_us\":%ld,\"at_ns\":%ld,\"median_us\":%ld,\"rounds\":%ld}\n", threads,
            worst->longest / 1000, (long)worst->at, pauses[threads / 2] / 1000, rounds);
}

int main(int argc, char **argv) {
    threads = arg(argc, argv, 1, 64);
    if (threads < 1 || threads > MOST) {
        dprintf(2, "pauses: 1 to %d threads\n", MOST);
        return 2;
    }
    sleep_ns = threads > TOGETHER ? SHORTEST_NS / TOGETHER * threads : SHORTEST_NS;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * KIB);
    for (long i = 0; i < threads; i++) {
        pthread_t id;
        if ((errno = pthread_create(&id, &small, sleeper, &sleepers[i]))) die("pthread_create");
    }
    for (long i = 0; i < threads; i++)
        while (!sleepers[i].runs) sleep_us(1000);
    dprintf(1, "working\n");
    char line[80];
    while (fgets(line, sizeof line, stdin)) {
        if (strcmp(line, "report\n") == 0) report();
        if (strcmp(line, "reset\n")) continue;
        for (long i = 0; i < threads; i++) sleepers[i].longest = sleepers[i].at = sleepers[i].rounds = 0;
        dprintf(1, "reset\n");
    }
    return 0;
}
