// The benchmark's program: map, touch, unmap, from a deep stack.
//
//   churn [PAIRS=10000] [THREADS=1] [OTHER_CALLS=0] [BYTES=65536] [DEPTH=30]
//
// Each of THREADS threads, DEPTH frames deep, maps BYTES, writes to the first page and unmaps, PAIRS
// times; between two pairs it makes OTHER_CALLS system calls that touch no memory (getppid).
// Prints "loop_ns": from the moment when all threads stand ready to the end of the last one's loop.
// maptrail must say: 2 * PAIRS * THREADS events of churn_pair, nothing held.
#include "truth.h"
#include <pthread.h>

static struct kind churn = {.name = "churn_pair"};
static long pairs, threads, others, depth;
static size_t bytes;
static pthread_barrier_t ready, done;

FRAME void churn_pair(void) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *(volatile char *)check_map(p, "mmap") = 1;
    check(munmap(p, bytes), "munmap");
}

FRAME void churn_loop(void) {
    for (long i = 0; i < pairs; i++) {
        churn_pair();
        for (long j = 0; j < others; j++) syscall(SYS_getppid);
    }
}

// Frames of different sizes, with callee-saved registers in use.
FRAME long descend(long left) {
    volatile long room[4 + 2];
    room[left & 3] = left;
    long sum;
    if (left > 0) {
        sum = descend(left - 1);
    } else {
        churn_loop();
        sum = 0;
    }
    return sum + room[left & 3];
}

static void *run(void *nothing) {
    (void)nothing;
    pthread_barrier_wait(&ready);
    // run, descend (depth - 3 of them), churn_loop and churn_pair
    descend(depth - 4);
    pthread_barrier_wait(&done);
    return NULL;
}

int main(int argc, char **argv) {
    pairs = arg(argc, argv, 1, 10000);
    threads = arg(argc, argv, 2, 1);
    others = arg(argc, argv, 3, 0);
    bytes = (size_t)arg(argc, argv, 4, 65536);
    depth = arg(argc, argv, 5, 30);
    if (depth < 4) depth = 4;
    long begin;
    if (threads == 1) {
        begin = now_ns();
        descend(depth - 4);
    } else {
        pthread_barrier_init(&ready, NULL, (unsigned)threads + 1);
        pthread_barrier_init(&done, NULL, (unsigned)threads + 1);
        for (long i = 0; i < threads; i++) {
            pthread_t id;
            if ((errno = pthread_create(&id, NULL, run, NULL))) die("pthread_create");
        }
        pthread_barrier_wait(&ready);
        begin = now_ns();
        pthread_barrier_wait(&done);
    }
    long loop_ns = now_ns() - begin;
    churn.made = churn.released = pairs * threads;
    churn.made_bytes = churn.released_bytes = pairs * threads * (long)bytes;
    truth_begin("churn");
    truth_kind(&churn);
    truth_number("loop_ns", loop_ns);
    truth_end();
    return 0;
}
