// Children that ask not to be traced, as LeakSanitizer's does.
//
//   untraced [COUNT=10]
//
// By turns: clone(CLONE_UNTRACED) and clone3(CLONE_UNTRACED) of a copy, which maps 5 pages
// (map_in_copy) and tells its truth; clone(CLONE_VM | CLONE_UNTRACED) of a sibling in the same space,
// which maps 3 pages there (map_in_untraced). A child under a filter without its tracer would get
// ENOSYS from its memory calls; each child's status says whether it could map.
// maptrail must say: the same as of any other child; good children: all.
#include "truth.h"
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

static struct kind copy = {.name = "map_in_copy"}, sibling = {.name = "map_in_untraced"};

static int map(struct kind *k, size_t pages) {
    void *p = (void *)syscall(SYS_mmap, NULL, pages * PAGE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    if (p == MAP_FAILED) return errno;
    touch(p, pages * PAGE);
    made(k, pages * PAGE);
    return 0;
}

FRAME int map_in_copy(void) { return map(&copy, 5) + 0 * getpid(); }
FRAME int map_in_untraced(void) { return map(&sibling, 3) + 0 * getpid(); }

static void copy_main(void) {
    int error = map_in_copy();
    truth_begin("untraced/copy");
    truth_kind(&copy);
    truth_end();
    _exit(error);
}

static int sibling_main(void *nothing) {
    (void)nothing;
    return map_in_untraced();
}

static long finish(long pid) {
    int status;
    check(pid, "clone");
    check(waitpid((pid_t)pid, &status, __WALL), "waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status))
        dprintf(2, "a child ended with status %#x (%s)\n", (unsigned)status, strerror(WEXITSTATUS(status)));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main(int argc, char **argv) {
    static char stack[64 * 1024] __attribute__((aligned(64)));
    long count = arg(argc, argv, 1, 10), good = 0;
    for (long i = 0; i < count; i++) {
        long pid = syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0);
        if (pid == 0) copy_main();
        good += finish(pid);
        struct clone_args args = {.flags = CLONE_UNTRACED, .exit_signal = SIGCHLD};
        pid = syscall(SYS_clone3, &args, sizeof args);
        if (pid == 0) copy_main();
        good += finish(pid);
        good += finish(clone(sibling_main, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_UNTRACED | SIGCHLD,
                             NULL));
    }
    truth_begin("untraced");
    truth_kind(&sibling);
    truth_number("children", 3 * count);
    truth_number("good_children", good);
    truth_end();
    return 0;
}
