// Calls that truly race on one range, so that no order of their stamps is the right one for sure.
//
//   race brk|protect|fixed|lockall [THREADS=4] [ITERATIONS=2000]
//
//   brk      threads raise and lower the heap's end at once
//   protect  threads change the permissions of the same 8 pages
//   fixed    threads map over the same 8 pages by MAP_FIXED, with different permissions
//   lockall  one thread switches mlockall(MCL_FUTURE) on and off, the others map and unmap
// The end is in the hands of the kernel, so there is no sum to print.
// maptrail must say: drift 0; what it had to settle by looking is counted in `settled`.
#include "truth.h"
#include <pthread.h>

static const char *mode;
static long iterations;
static char *range;
static long heap;
static pthread_barrier_t all;

static void step(long thread, unsigned long *random) {
    static const int prots[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC};
    int prot = prots[next_random(random) % 4];
    size_t first = next_random(random) % 8, pages = next_random(random) % (8 - first) + 1;
    if (!strcmp(mode, "brk")) {
        syscall(SYS_brk, heap + (long)(next_random(random) % 64 * PAGE));
    } else if (!strcmp(mode, "protect")) {
        check(mprotect(range + first * PAGE, pages * PAGE, prot), "mprotect");
    } else if (!strcmp(mode, "fixed")) {
        check_map(mmap(range + first * PAGE, pages * PAGE, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
                  "mmap");
    } else if (thread == 0) {
        if (mlockall(MCL_FUTURE) || munlockall()) die("mlockall");
    } else {
        void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(munmap(check_map(p, "mmap"), PAGE), "munmap");
    }
}

static void *race(void *number) {
    unsigned long random = (unsigned long)number * 7919 + 88172645463325252UL;
    pthread_barrier_wait(&all);
    for (long i = 0; i < iterations; i++) step((long)number, &random);
    return NULL;
}

int main(int argc, char **argv) {
    mode = argc > 1 ? argv[1] : "brk";
    long threads = arg(argc, argv, 2, 4);
    iterations = arg(argc, argv, 3, 2000);
    if (strcmp(mode, "brk") && strcmp(mode, "protect") && strcmp(mode, "fixed") && strcmp(mode, "lockall")) {
        dprintf(2, "unknown mode %s\n", mode);
        return 99;
    }
    // Room, so that the heap's end does not fall below what the C library has in use.
    heap = syscall(SYS_brk, syscall(SYS_brk, 0) + (long)(1024 * PAGE));
    range = check_map(mmap(NULL, 8 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    pthread_t *ids = check_map(mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                               "mmap");
    pthread_barrier_init(&all, NULL, (unsigned)threads);
    for (long i = 0; i < threads; i++)
        if ((errno = pthread_create(&ids[i], NULL, race, (void *)i))) die("pthread_create");
    for (long i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    truth_begin("race");
    truth_word("mode", mode);
    truth_end();
    return 0;
}
