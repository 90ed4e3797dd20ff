// A program that wants to be traced by its own parent.
//
//   self_trace
//
// A child asks for PTRACE_TRACEME and stops itself; the parent lets it go on. Prints "traceme":"ok",
// or the error's name: under another tracer the kernel answers EPERM, and nothing can hide that.
// maptrail must say: that the program tried to trace itself and could not.
#include "truth.h"
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

int main(void) {
    int status;
    pid_t pid = fork();
    check(pid, "fork");
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0) _exit(errno);
        raise(SIGSTOP);
        _exit(0);
    }
    check(waitpid(pid, &status, 0), "waitpid");
    if (WIFSTOPPED(status)) {
        check(ptrace(PTRACE_CONT, pid, NULL, NULL), "PTRACE_CONT");
        check(waitpid(pid, &status, 0), "waitpid");
    }
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : EINVAL;
    truth_begin("self_trace");
    truth_word("traceme", code ? strerrorname_np(code) : "ok");
    truth_end();
    return 0;
}
