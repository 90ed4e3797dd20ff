// Starts a program in an unusual state; a tool of the tests.
//
//   launch_as [WHAT]... -- CMD ARG...
//
//   close=FD      descriptor FD is closed            open=FD      /dev/null is opened as FD
//   ignore=SIG    signal SIG is ignored              block=SIG    signal SIG is blocked
//   nice=N        nice value N                       umask=OCTAL  file mode mask
//   limit=R:N     soft limit of resource R is N      hard=R:N     soft and hard limit
//   group         a process group of its own         session      a session of its own
//   tty           a session of its own with descriptor 0 as its terminal
//   cd=DIR        working directory                  user=UID     user and group UID, no others
//   stack=MIB     soft stack limit                   aslr-off     addresses are not randomised
//   subreaper     orphans come to this process
// Numbers of signals and resources as the kernel has them.
#include "truth.h"
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

static void limit(const char *text, int hard) {
    char *end;
    long resource = strtol(text, &end, 0);
    unsigned long n = strtoul(end + (*end == ':'), NULL, 0);
    struct rlimit l;
    check(getrlimit((int)resource, &l), "getrlimit");
    l.rlim_cur = n;
    if (hard) l.rlim_max = n;
    check(setrlimit((int)resource, &l), "setrlimit");
}

static void apply(const char *what) {
    const char *equals = strchr(what, '=');
    const char *value = equals ? equals + 1 : "";
    size_t len = equals ? (size_t)(equals - what) : strlen(what);
    long n = strtol(value, NULL, 0);
#define IS(name) (len == strlen(name) && !strncmp(what, name, len))
    if (IS("close")) {
        close((int)n);
    } else if (IS("open")) {
        int fd = open("/dev/null", O_RDONLY);
        check(dup2(fd, (int)n), "dup2");
        if (fd != n) close(fd);
    } else if (IS("ignore")) {
        if (signal((int)n, SIG_IGN) == SIG_ERR) die("signal");
    } else if (IS("block")) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, (int)n);
        check(sigprocmask(SIG_BLOCK, &set, NULL), "sigprocmask");
    } else if (IS("nice")) {
        check(setpriority(PRIO_PROCESS, 0, (int)n), "setpriority");
    } else if (IS("umask")) {
        umask((mode_t)strtol(value, NULL, 8));
    } else if (IS("limit")) {
        limit(value, 0);
    } else if (IS("hard")) {
        limit(value, 1);
    } else if (IS("group")) {
        check(setpgid(0, 0), "setpgid");
    } else if (IS("session")) {
        check(setsid(), "setsid");
    } else if (IS("tty")) {
        check(setsid(), "setsid");
        check(ioctl(0, TIOCSCTTY, 0), "TIOCSCTTY");
    } else if (IS("cd")) {
        check(chdir(value), "chdir");
    } else if (IS("user")) {
        check(setgroups(0, NULL), "setgroups");
        check(setresgid((gid_t)n, (gid_t)n, (gid_t)n), "setresgid");
        check(setresuid((uid_t)n, (uid_t)n, (uid_t)n), "setresuid");
    } else if (IS("stack")) {
        struct rlimit l;
        check(getrlimit(RLIMIT_STACK, &l), "getrlimit");
        l.rlim_cur = (unsigned long)n * MIB;
        check(setrlimit(RLIMIT_STACK, &l), "setrlimit");
    } else if (IS("aslr-off")) {
        check(personality(ADDR_NO_RANDOMIZE), "personality");
    } else if (IS("subreaper")) {
        check(prctl(PR_SET_CHILD_SUBREAPER, 1), "prctl");
    } else {
        dprintf(2, "launch_as: unknown word %s\n", what);
        _exit(99);
    }
}

int main(int argc, char **argv) {
    int i = 1;
    for (; i < argc && strcmp(argv[i], "--"); i++) apply(argv[i]);
    if (i + 1 >= argc) {
        dprintf(2, "usage: launch_as [WHAT]... -- CMD ARG...\n");
        return 99;
    }
    execvp(argv[i + 1], argv + i + 1);
    dprintf(2, "launch_as: %s: %s\n", argv[i + 1], strerror(errno));
    return 99;
}
