// Prints what a program can see of how it was started.
//
//   probe [ARG...]
//   probe --group
//
// One line each: arguments, environment, working directory, open descriptors, signal dispositions and
// mask, pending signals, terminal, nice value, scheduling, affinity, limits, umask, timers, ids and
// capabilities, personality, dumpable, death signal, and more of /proc/self/status.
// With --group only the numbers of its process group and its session.
// Not printed, since tracing must show there: TracerPid, Seccomp and NoNewPrivs.
// maptrail must change no line of it.
#include "truth.h"
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

extern char **environ;

static void descriptors(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    for (int fd = 0; fd < 4096 && fd < (int)files.rlim_cur; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (flags < 0) continue;
        struct stat s;
        fstat(fd, &s);
        printf("fd %d: type %o, descriptor flags %d, status flags %o, offset %ld\n", fd, s.st_mode & S_IFMT, flags,
               (unsigned)fcntl(fd, F_GETFL), (long)lseek(fd, 0, SEEK_CUR));
    }
}

static void signals(void) {
    sigset_t mask, pending;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    sigpending(&pending);
    for (int i = 1; i < NSIG; i++) {
        struct sigaction action;
        if (sigaction(i, NULL, &action)) continue;
        printf("signal %d:%s%s%s\n", i, action.sa_handler == SIG_IGN ? " ignored" : action.sa_handler == SIG_DFL ? " default" : " handled",
               sigismember(&mask, i) ? " blocked" : "", sigismember(&pending, i) ? " pending" : "");
    }
}

static void limits(void) {
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit l;
        if (!getrlimit(i, &l)) printf("limit %d: %lu %lu\n", i, (unsigned long)l.rlim_cur, (unsigned long)l.rlim_max);
    }
}

static void status(void) {
    static const char *wanted[] = {"Umask:", "Uid:", "Gid:", "Groups:", "FDSize:", "CapInh:", "CapPrm:", "CapEff:",
                                   "CapBnd:", "CapAmb:", "Cpus_allowed:", "Mems_allowed:", "SigBlk:", "SigIgn:",
                                   "SigCgt:", "ShdPnd:", "SigPnd:", "Threads:", "THP_enabled:", "Speculation_Store_Bypass:",
                                   "SpeculationIndirectBranch:"};
    char line[4096];
    FILE *f = fopen("/proc/self/status", "re");
    while (f && fgets(line, sizeof line, f))
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (!strncmp(line, wanted[i], strlen(wanted[i]))) printf("status %s", line);
    if (f) fclose(f);
}

static void file(const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (n >= 0) printf("%s: %.*s\n", path, (int)n, text);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--group")) {
        printf("%d %d\n", getpgrp(), getsid(0));
        return 0;
    }
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    descriptors();
    signals();
    for (int i = 0; i < argc; i++) printf("argument %d: %s\n", i, argv[i]);
    for (char **e = environ; *e; e++) printf("environment: %s\n", *e);
    char cwd[4096];
    printf("directory: %s\n", getcwd(cwd, sizeof cwd) ? cwd : "?");
    for (int fd = 0; fd < 3; fd++) {
        if (isatty(fd)) printf("terminal %d: foreground %s\n", fd, tcgetpgrp(fd) == getpgrp() ? "yes" : "no");
    }
    printf("nice: %d\n", getpriority(PRIO_PROCESS, 0));
    printf("scheduler: %d\n", sched_getscheduler(0));
    limits();
    for (int i = ITIMER_REAL; i <= ITIMER_PROF; i++) {
        struct itimerval t;
        getitimer(i, &t);
        printf("timer %d: %s\n", i, t.it_value.tv_sec || t.it_value.tv_usec ? "set" : "unset");
    }
    printf("personality: %x\n", (unsigned)personality(0xffffffff));
    int death = -1;
    prctl(PR_GET_PDEATHSIG, &death);
    printf("dumpable %d, death signal %d, keepcaps %d, securebits %d, timer slack %d\n",
           prctl(PR_GET_DUMPABLE), death, prctl(PR_GET_KEEPCAPS), prctl(PR_GET_SECUREBITS), prctl(PR_GET_TIMERSLACK));
    int subreaper = 0;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    printf("subreaper: %d\n", subreaper);
    status();
    file("/proc/self/oom_score_adj");
    file("/proc/self/coredump_filter");
    file("/proc/self/cgroup");
    file("/proc/self/comm");
    fflush(stdout);
    return ferror(stdout) ? 1 : 0;
}
