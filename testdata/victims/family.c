// Children of all sorts, and exec.
//
//   family vfork|spawn|clone-vm|exec-thread|leaf [COUNT=30]
//
//   vfork        vfork, and exec of `family leaf` in the child, COUNT times
//   spawn        the same by posix_spawn
//   clone-vm     COUNT children by clone(CLONE_VM), no CLONE_THREAD: other processes, the same space.
//                Each leaves one mapping of 3 pages behind (map_in_sibling) and unmaps one that its
//                parent made (map_for_sibling)
//   exec-thread  threads map (map_before_exec); one that is not the leader execs `family leaf`
//   leaf         maps 4 x 5 pages and keeps them (map_in_leaf); prints its truth, exits with status 4
// maptrail must say: every leaf's space holds 4 x 5 pages, counted apart from its parent's;
// map_in_sibling is held in the one space, map_for_sibling is not.
#include "truth.h"
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;
static struct kind leaf = {.name = "map_in_leaf"}, sibling = {.name = "map_in_sibling"},
                   handed = {.name = "map_for_sibling"}, before = {.name = "map_before_exec"};

static void *map(struct kind *k, size_t pages) {
    void *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), pages * PAGE);
    made(k, pages * PAGE);
    return p;
}

FRAME void map_in_leaf(void) { touch(map(&leaf, 5), PAGE); }
FRAME void map_in_sibling(void) { touch(map(&sibling, 3), PAGE); }
FRAME void map_before_exec(void) { touch(map(&before, 2), PAGE); }
FRAME void *map_for_sibling(void) {
    char *p = map(&handed, 7);
    touch(p, PAGE);
    return p;
}

static char *leaf_argv[] = {"family", "leaf", NULL};

static long finish(pid_t pid) {
    int status;
    check(pid, "child");
    check(waitpid(pid, &status, __WALL), "waitpid");
    return WIFEXITED(status) && WEXITSTATUS(status) == 4;
}

static long by_vfork(void) {
    pid_t pid = vfork();
    if (pid == 0) {
        execv("/proc/self/exe", leaf_argv);
        _exit(98);
    }
    return finish(pid);
}

static long by_spawn(void) {
    pid_t pid;
    if ((errno = posix_spawn(&pid, "/proc/self/exe", NULL, NULL, leaf_argv, environ))) die("posix_spawn");
    return finish(pid);
}

static int sibling_main(void *from_parent) {
    map_in_sibling();
    if (syscall(SYS_munmap, from_parent, 7 * PAGE)) return 97;
    released(&handed, 7 * PAGE);
    return 4;
}

static long by_clone_vm(char *stack) {
    return finish(clone(sibling_main, stack, CLONE_VM | CLONE_FS | SIGCHLD, map_for_sibling()));
}

static pthread_barrier_t ready;

static void *thread(void *number) {
    map_before_exec();
    pthread_barrier_wait(&ready);
    if ((long)number == 3) {
        execv("/proc/self/exe", leaf_argv);
        die("execv");
    }
    for (;;) map_before_exec();
}

static void exec_from_thread(long count) {
    pthread_t id;
    pthread_barrier_init(&ready, NULL, (unsigned)count + 1);
    for (long i = 0; i < count; i++)
        if ((errno = pthread_create(&id, NULL, thread, (void *)i))) die("pthread_create");
    pthread_barrier_wait(&ready);
    for (;;) pause();
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "spawn";
    long count = arg(argc, argv, 2, 30), good = 0;
    if (!strcmp(mode, "leaf")) {
        for (int i = 0; i < 4; i++) map_in_leaf();
        truth_begin("family/leaf");
        truth_kind(&leaf);
        truth_end();
        return 4;
    }
    if (!strcmp(mode, "exec-thread")) exec_from_thread(count < 4 ? 4 : count);
    static char stack[256 * 1024] __attribute__((aligned(64)));
    for (long i = 0; i < count; i++) {
        if (!strcmp(mode, "vfork")) good += by_vfork();
        else if (!strcmp(mode, "spawn")) good += by_spawn();
        else if (!strcmp(mode, "clone-vm")) good += by_clone_vm(stack + sizeof stack);
        else die("unknown mode");
    }
    truth_begin("family");
    truth_kind(&sibling);
    truth_kind(&handed);
    truth_number("children_exited_4", good);
    truth_end();
    return 0;
}
