// A program that does what it is told: one command a line, one answer a line.
//
//   worker
//
// Says "TID ready", reads commands from standard input, and ends with status 0 when that does. Each answer
// begins with the tid of the thread that gives it. Nothing happens unless it is asked for.
//   map COUNT [PAGES=13]  maps PAGES pages, COUNT times, and keeps them          "mapped"
//   unmap COUNT           gives back what was mapped last, COUNT times           "unmapped"
//   churn                 maps and unmaps for ever                               "churns"
//   stuck                 begins a transfer that never ends                      "stuck"
//   thread NAME           makes a thread                                         "thread", says the new one
//   copy NAME             makes a process by fork                                "copy", says the new one
//   sharer NAME           makes a process that shares the memory (CLONE_VM)      "sharer", says the new one
//   to NAME COMMAND       has that thread, or that process, do it                what it answers
//   leave                 the thread ends; after the first thread another one
//                         reads standard input                                   "leaves", or "reads"
//   child HOW             makes a process by fork, vfork (and exec), share (CLONE_VM) or silent (a copy
//                         whose end sends no signal); it looks whether it is traced, maps 13 pages 4 times
//                         and ends                                               "child PID traced", or "free"
//   exec                  runs itself anew                                       "ready"
//   exit STATUS           ends the process
// maptrail must say: what the test asked for, of the threads that it follows; the rest is untraced.
#include "truth.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

// Of so many pages nobody else makes mappings, the loader and libc least of all.
enum { PAGES = 13 };
enum { FREE = 40, TRACED = 41, LINE = 256 };

static void serve(int commands);

__attribute__((format(printf, 1, 2))) static void answer(const char *format, ...) {
    char text[LINE];
    int n = snprintf(text, sizeof text, "%d ", (int)gettid());
    va_list list;
    va_start(list, format);
    n += vsnprintf(text + n, sizeof text - (size_t)n - 1, format, list);
    va_end(list);
    text[n++] = '\n';
    if (write(1, text, (size_t)n) != n) die("answer");
}

// What was mapped last, as far as there is room to remember it.
static struct {
    void *start;
    size_t bytes;
} kept[256];
static atomic_size_t mapped;

FRAME void map_kept(long count, long pages) {
    size_t bytes = (size_t)pages * PAGE;
    for (long i = 0; i < count; i++) {
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        size_t at = mapped++ % (sizeof kept / sizeof *kept);
        kept[at].start = check_map(p, "mmap");
        kept[at].bytes = bytes;
    }
}

FRAME void unmap_kept(long count) {
    for (long i = 0; i < count; i++) {
        size_t at = --mapped % (sizeof kept / sizeof *kept);
        check(munmap(kept[at].start, kept[at].bytes), "munmap");
    }
}

FRAME void churn(void) {
    for (;;) {
        void *p = check_map(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
        check(munmap(p, PAGE), "munmap");
    }
}

static void never_written(void) {
    static char much[256 * KIB];
    int ends[2];
    check(pipe2(ends, O_CLOEXEC), "pipe");
    answer("stuck");
    for (;;) check(write(ends[1], much, sizeof much), "write");
}

// Whom `to` reaches, and by which pipe.
static struct worker {
    char name[16];
    int ends[2];
} workers[64];
static atomic_int count;

static struct worker *new_worker(const char *name) {
    struct worker *mine = &workers[count];
    snprintf(mine->name, sizeof mine->name, "%s", name);
    check(pipe2(mine->ends, O_CLOEXEC), "pipe");
    if (++count == sizeof workers / sizeof *workers) die("too many workers");
    return mine;
}

static void tell(const char *name, const char *command) {
    for (int i = count; i-- > 0;) {
        if (strcmp(workers[i].name, name)) continue;
        if (dprintf(workers[i].ends[1], "%s\n", command) < 0) die("to");
        return;
    }
    answer("there is no %s", name);
}

static void *thread(void *worker) {
    const struct worker *mine = worker;
    check(prctl(PR_SET_NAME, mine->name), "PR_SET_NAME");
    answer("thread");
    serve(mine->ends[0]);
    return NULL;
}

// A process does not outlive the thread that made it.
static void process(const struct worker *mine, const char *what) {
    check(prctl(PR_SET_PDEATHSIG, SIGKILL), "PR_SET_PDEATHSIG");
    check(prctl(PR_SET_NAME, mine->name), "PR_SET_NAME");
    answer("%s", what);
    serve(mine->ends[0]);
}

static int sharer(void *worker) {
    process(worker, "sharer");
    return 0;
}

static void copy(const struct worker *mine) {
    pid_t pid = fork();
    check(pid, "fork");
    if (pid) return;
    process(mine, "copy");
    _exit(0);
}

static void *standard_input(void *nothing) {
    (void)nothing;
    answer("reads");
    serve(0);
    _exit(0);
}

static void new_thread(void *(*run)(void *), void *with) {
    pthread_t id;
    if ((errno = pthread_create(&id, NULL, run, with))) die("pthread_create");
    if ((errno = pthread_detach(id))) die("pthread_detach");
}

static char look_stack[256 * KIB] __attribute__((aligned(64))), sharer_stack[256 * KIB] __attribute__((aligned(64)));

static int look(void *nothing) {
    (void)nothing;
    char text[4096];
    int file = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(file, text, sizeof text - 1);
    check(n, "status");
    text[n] = 0;
    close(file);
    map_kept(4, PAGES);
    return strstr(text, "TracerPid:\t0\n") ? FREE : TRACED;
}

static void child(const char *how) {
    static char *const looks[] = {"worker", "look", NULL};
    int status;
    pid_t pid;
    if (!strcmp(how, "fork")) {
        pid = fork();
    } else if (!strcmp(how, "silent")) {
        pid = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);
    } else if (!strcmp(how, "share")) {
        pid = clone(look, look_stack + sizeof look_stack, CLONE_VM | SIGCHLD, NULL);
    } else {
        pid = vfork();
        if (pid == 0) {
            execv("/proc/thread-self/exe", looks);
            _exit(98);
        }
    }
    if (pid == 0) _exit(look(NULL));
    check(pid, how);
    check(waitpid(pid, &status, __WALL), "waitpid");
    if (!WIFEXITED(status)) die("child");
    int told = WEXITSTATUS(status);
    answer("child %d %s", (int)pid, told == FREE ? "free" : told == TRACED ? "traced" : "failed");
}

// Does as `line` says. False if the thread is to end.
static int obey(char *line) {
    static char *const again[] = {"worker", NULL};
    char *rest = line + strcspn(line, " ");
    if (*rest) *rest++ = 0;
#define IS(word) (!strcmp(line, word))
    if (IS("map")) {
        char *pages;
        long times = strtol(rest, &pages, 10);
        map_kept(times, *pages ? strtol(pages, NULL, 10) : PAGES);
        answer("mapped");
    } else if (IS("unmap")) {
        unmap_kept(atol(rest));
        answer("unmapped");
    } else if (IS("churn")) {
        answer("churns");
        churn();
    } else if (IS("stuck")) {
        never_written();
    } else if (IS("thread")) {
        new_thread(thread, new_worker(rest));
    } else if (IS("copy")) {
        copy(new_worker(rest));
    } else if (IS("sharer")) {
        char *top = sharer_stack + sizeof sharer_stack;
        check(clone(sharer, top, CLONE_VM | CLONE_FILES | SIGCHLD, new_worker(rest)), "clone");
    } else if (IS("to")) {
        char *command = rest + strcspn(rest, " ");
        if (*command) *command++ = 0;
        tell(rest, command);
    } else if (IS("leave")) {
        if (gettid() != getpid()) {
            answer("leaves");
            return 0;
        }
        new_thread(standard_input, NULL);
        pthread_exit(NULL);
    } else if (IS("child")) {
        child(rest);
    } else if (IS("exec")) {
        execv("/proc/thread-self/exe", again);
        die("exec");
    } else if (IS("exit")) {
        _exit(atoi(rest));
    } else {
        answer("what is %s?", line);
    }
    return 1;
}

// A byte at a time: what follows a command stays for whoever reads next.
static void serve(int commands) {
    char line[LINE];
    size_t n = 0;
    while (read(commands, &line[n], 1) == 1) {
        if (line[n] != '\n') {
            if (++n == sizeof line) die("a line too long");
            continue;
        }
        line[n] = 0;
        n = 0;
        if (!obey(line)) return;
    }
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "look")) _exit(look(NULL));
    answer("ready");
    serve(0);
    _exit(0);
}
