// Many threads map, unmap, protect, move and overlay at random; addresses go round between them.
//
//   storm [THREADS=8] [ITERATIONS=2000] [SEED=1] [FORKS=0] [SLOTS=64]
//
// A thread takes a mapping out of a shared slot (so that it is the only one to act on it), acts, and
// puts back what is left; empty slots get a new mapping. Whatever one thread unmaps, the kernel hands
// to another at once. Meanwhile the main thread forks FORKS children; each maps and keeps 8 x 16 pages
// (map_in_fork), says so in a truth line of its own, and exits.
// maptrail must say: drift 0, in the children too; storm_thread holds what is in the slots at the end.
#include "truth.h"
#include <pthread.h>
#include <sys/wait.h>

// A mapping in one word: its page-aligned start, and its pages (1 to 255) in the low bits.
static atomic_ulong slots[4096];
static long threads, iterations, seed, forks, slot_count;
static atomic_long running;
static struct kind storm = {.name = "storm_thread"}, forked = {.name = "map_in_fork"};

static char *start(unsigned long m) { return (char *)(m & ~(PAGE - 1)); }
static size_t length(unsigned long m) { return (m & (PAGE - 1)) * PAGE; }
static unsigned long pack(void *p, size_t bytes) { return bytes ? (unsigned long)p | bytes / PAGE : 0; }

static unsigned long map(unsigned long *random) {
    size_t bytes = (next_random(random) % 32 + 1) * PAGE;
    int prot = next_random(random) % 8 ? PROT_READ | PROT_WRITE : PROT_NONE;
    int flags = next_random(random) % 8 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED | MAP_ANONYMOUS;
    void *p = check_map(mmap(NULL, bytes, prot, flags, -1, 0), "mmap");
    if (prot != PROT_NONE) *(volatile char *)p = 1;
    made(&storm, bytes);
    return pack(p, bytes);
}

static void unmap(unsigned long m) {
    if (!m) return;
    check(munmap(start(m), length(m)), "munmap");
    released(&storm, length(m));
}

static unsigned long resize(unsigned long m, unsigned long *random) {
    size_t to = (next_random(random) % 64 + 1) * PAGE;
    // A mapping that was overlaid or protected in part is several to the kernel: it may refuse.
    void *p = mremap(start(m), length(m), to, MREMAP_MAYMOVE);
    if (p == MAP_FAILED) return m;
    atomic_fetch_add(&storm.made_bytes, (long)to - (long)length(m));
    return pack(p, to);
}

// Acts on a mapping that nobody else holds; gives back what is left of it.
static unsigned long act(unsigned long m, unsigned long *random) {
    size_t bytes = length(m), half = bytes / PAGE / 2 * PAGE;
    switch (next_random(random) % 8) {
    case 0:
        check(mprotect(start(m), bytes, PROT_READ | PROT_WRITE), "mprotect");
        return m;
    case 1:
        check(mprotect(start(m) + half, bytes - half, PROT_READ), "mprotect");
        return m;
    case 2:
        return resize(m, random);
    case 3: // the tail goes
        if (!half) return m;
        check(munmap(start(m) + half, bytes - half), "munmap");
        released_part(&storm, bytes - half);
        return pack(start(m), half);
    case 4: // a new mapping over the middle
        check_map(mmap(start(m) + half, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                       -1, 0),
                  "mmap");
        made(&storm, 0);
        return m;
    default:
        unmap(m);
        return 0;
    }
}

FRAME void *storm_thread(void *number) {
    unsigned long random = (unsigned long)seed * 1000003 + (unsigned long)number * 7919 + 88172645463325252UL;
    for (long i = 0; i < iterations; i++) {
        atomic_ulong *slot = &slots[next_random(&random) % (unsigned long)slot_count];
        unsigned long m = atomic_exchange(slot, 0);
        m = m ? act(m, &random) : map(&random);
        unmap(atomic_exchange(slot, m));
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

FRAME void map_in_fork(void) {
    void *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), 16 * PAGE);
    made(&forked, 16 * PAGE);
}

static void fork_one(void) {
    pid_t pid = fork();
    check(pid, "fork");
    if (pid == 0) {
        for (int i = 0; i < 8; i++) map_in_fork();
        truth_begin("storm/fork");
        truth_kind(&forked);
        truth_end();
        _exit(0);
    }
    int status;
    check(waitpid(pid, &status, 0), "waitpid");
    if (status) die("a forked child failed");
}

int main(int argc, char **argv) {
    threads = arg(argc, argv, 1, 8);
    iterations = arg(argc, argv, 2, 2000);
    seed = arg(argc, argv, 3, 1);
    forks = arg(argc, argv, 4, 0);
    slot_count = arg(argc, argv, 5, 64);
    if (slot_count > 4096) slot_count = 4096;
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    running = threads;
    for (long i = 0; i < threads; i++)
        if ((errno = pthread_create(&ids[i], NULL, storm_thread, (void *)i))) die("pthread_create");
    long in_storm = 0;
    for (long i = 0; i < forks; i++) {
        in_storm += atomic_load(&running) > 0;
        fork_one();
    }
    for (long i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    truth_begin("storm");
    // Overlays make mappings of their own inside others, so only bytes can be told here.
    truth_add("\"storm_thread\":{\"held_bytes\":%ld}", (long)(storm.made_bytes - storm.released_bytes));
    truth_number("forks", forks);
    truth_number("forks_in_storm", in_storm);
    truth_end();
    return 0;
}
