// exit_group in the middle of other threads' memory calls.
//
//   exit_storm [THREADS=16] [CODE=42] [ROUNDS=50]
//
// THREADS threads map, move and unmap without end; when each has done it ROUNDS times, the main thread
// calls exit_group(CODE), or, if CODE is over 255, kills its process with signal CODE - 256.
// Prints {"victim":"exit_storm",...} first. maptrail must say: drift 0, nothing lost; the exit code is
// CODE (128 + signal).
#include "truth.h"
#include <pthread.h>
#include <signal.h>

static atomic_long rounds[256];

__attribute__((noreturn)) static void *storm(void *number) {
    for (;;) {
        void *p = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        p = mremap(check_map(p, "mmap"), 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
        check(munmap(check_map(p, "mremap"), 16 * PAGE), "munmap");
        atomic_fetch_add(&rounds[(long)number], 1);
    }
}

int main(int argc, char **argv) {
    long threads = arg(argc, argv, 1, 16), code = arg(argc, argv, 2, 42), enough = arg(argc, argv, 3, 50);
    if (threads > 256) threads = 256;
    pthread_t id;
    for (long i = 0; i < threads; i++)
        if ((errno = pthread_create(&id, NULL, storm, (void *)i))) die("pthread_create");
    for (long i = 0; i < threads; i++)
        while (atomic_load(&rounds[i]) < enough) usleep(100);
    truth_begin("exit_storm");
    truth_number("threads", threads);
    truth_end();
    if (code > 255) kill(getpid(), (int)code - 256);
    else syscall(SYS_exit_group, code);
    for (;;) pause();
}
