// A seccomp filter of the program's own that asks for a tracer.
//
//   sandbox [COUNT=5]
//
// The filter answers RET_TRACE for getppid and for an mmap of exactly 5 pages. Nobody traces this
// program for that, so the kernel fails both with ENOSYS; "getppid" and "map" say what came.
//   allowed_map    mmap of 3 pages, which the filter lets through; kept
// maptrail must say: 3 pages held for each round, and both answers as bare.
#include "truth.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

static struct kind allowed = {.name = "allowed_map"};

static const char *name(long result) {
    if (result != -1) return "no error";
    const char *n = strerrorname_np(errno);
    return n ? n : "?";
}

FRAME void allowed_map(void) {
    check_map(mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    made(&allowed, 3 * PAGE);
}

int main(int argc, char **argv) {
    long count = arg(argc, argv, 1, 5);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 5 * PAGE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | 7),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0), "seccomp");
    const char *parent = "", *map = "";
    for (long i = 0; i < count; i++) {
        parent = name(syscall(SYS_getppid));
        map = name((long)mmap(NULL, 5 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        allowed_map();
    }
    truth_begin("sandbox");
    truth_kind(&allowed);
    truth_word("getppid", parent);
    truth_word("map", map);
    truth_end();
    return 0;
}
