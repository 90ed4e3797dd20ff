// A forked worker leaks; the parent does not.
//
//   fork_worker [ROUNDS=200] [BYTES=131072] [WORKERS=1]
//
// Both sides map and unmap (churn_in_parent, churn_in_worker); each worker also leaks (leak_in_worker)
// and prints a truth line of its own before it exits with status 3. The parent's line comes last.
// maptrail must say: leak_in_worker holds ROUNDS * BYTES in each worker's space and nothing in the
// parent's; the rest holds nothing.
#include "truth.h"
#include <sys/wait.h>

static struct kind leaks = {.name = "leak_in_worker"}, theirs = {.name = "churn_in_worker"},
                   ours = {.name = "churn_in_parent"};

static void *map(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), bytes);
    return p;
}

static void churn(struct kind *k, size_t bytes) {
    void *p = map(bytes);
    made(k, bytes);
    check(munmap(p, bytes), "munmap");
    released(k, bytes);
}

FRAME void leak_in_worker(size_t bytes) {
    map(bytes);
    made(&leaks, bytes);
}

FRAME void churn_in_worker(size_t bytes) {
    churn(&theirs, bytes);
    __asm__ volatile("");
}

FRAME void churn_in_parent(size_t bytes) {
    churn(&ours, bytes);
    __asm__ volatile("");
}

static void work(long rounds, size_t bytes) {
    for (long i = 0; i < rounds; i++) {
        leak_in_worker(bytes);
        churn_in_worker(bytes);
    }
    truth_begin("fork_worker/worker");
    truth_kind(&leaks);
    truth_kind(&theirs);
    truth_end();
    _exit(3);
}

int main(int argc, char **argv) {
    long rounds = arg(argc, argv, 1, 200), workers = arg(argc, argv, 3, 1);
    size_t bytes = (size_t)arg(argc, argv, 2, 131072);
    for (long i = 0; i < workers; i++) {
        pid_t pid = fork();
        check(pid, "fork");
        if (pid == 0) work(rounds, bytes);
    }
    for (long i = 0; i < rounds; i++) churn_in_parent(bytes);
    long good = 0;
    for (long i = 0; i < workers; i++) {
        int status;
        check(wait(&status), "wait");
        good += WIFEXITED(status) && WEXITSTATUS(status) == 3;
    }
    truth_begin("fork_worker");
    truth_kind(&ours);
    truth_number("workers_exited_3", good);
    truth_end();
    return 0;
}
