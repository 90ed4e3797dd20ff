// Children that end, or are killed, in the middle of their memory calls.
//
//   cut_off [HOW=exit] [CHILDREN=30] [THREADS=8]
//
// Each of CHILDREN children has THREADS threads.
//   HOW=exit   they map and unmap; the first ends the process by exit_group
//   HOW=kill   they map and unmap; the parent sends SIGKILL
//   HOW=file   they map a file, and keep it; the parent sends SIGKILL
// maptrail must say: drift 0 in all children; which calls of the cut ones were made only the kernel knows.
#include "truth.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

static int file = -1;

static void *busy(void *nothing) {
    (void)nothing;
    for (;;) {
        if (file >= 0) {
            // Ends with the limit of mappings.
            if (mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, file, 0) == MAP_FAILED) pause();
            continue;
        }
        void *p = check_map(mmap(NULL, 64 * KIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
        check(munmap(p, 64 * KIB), "munmap");
    }
    return NULL;
}

static void child(long threads, int exits) {
    for (long i = exits ? 1 : 0; i < threads - 1 + exits; i++) {
        pthread_t id;
        if ((errno = pthread_create(&id, NULL, busy, NULL))) die("pthread_create");
    }
    if (!exits) busy(NULL);
    usleep(3000);
    _exit(0);
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "exit";
    long children = arg(argc, argv, 2, 30), threads = arg(argc, argv, 3, 8);
    int exits = strcmp(how, "exit") == 0;
    if (strcmp(how, "file") == 0) {
        file = open("/proc/self/exe", O_RDONLY);
        check(file, "open");
    }
    for (long i = 0; i < children; i++) {
        pid_t pid = fork();
        check(pid, "fork");
        if (pid == 0) child(threads, exits);
        if (!exits) {
            usleep((useconds_t)(2000 + i * 37));
            check(kill(pid, SIGKILL), "kill");
        }
        check(waitpid(pid, NULL, 0), "waitpid");
    }
    truth_begin("cut_off");
    truth_number("children", children);
    truth_end();
    return 0;
}
