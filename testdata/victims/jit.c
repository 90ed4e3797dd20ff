// Makes code as a just-in-time compiler does, writes a perf map of it, and leaks from within.
//
//   jit NAME [LEAKS=20] [BYTES=1048576] [INTERVAL_US=0] [CHILD_NAME]
//
// The code is called NAME in /tmp/perf-PID.map, where a line before, for the same address, calls it
// otherwise. It calls leak_jit, which maps BYTES by the raw system call. With CHILD_NAME a forked child does
// the same: its code lies at the same address, under the same frames, and has this name. A name of "-" writes
// no perf map. The files stay; their path is in the truth of each process.
// maptrail must say: leak_jit holds LEAKS * BYTES, called by NAME in this process and by CHILD_NAME in the
// other.
#include <stdint.h>
#include <sys/wait.h>

#include "truth.h"

static struct kind leaks = {.name = "leak_jit"};
static char path[64];

FRAME void leak_jit(size_t bytes) {
    check_map((void *)syscall(SYS_mmap, NULL, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L),
              "mmap");
    made(&leaks, bytes);
}

// code(function, argument) calls function(argument). It keeps a frame pointer, as such compilers do.
typedef void (*code_t)(void (*function)(size_t), size_t argument);

static code_t make_code(const char *name) {
    static const uint8_t bytes[] = {
        0x55,             // push %rbp
        0x48, 0x89, 0xe5, // mov %rsp, %rbp
        0x48, 0x89, 0xf8, // mov %rdi, %rax
        0x48, 0x89, 0xf7, // mov %rsi, %rdi
        0xff, 0xd0,       // call *%rax
        0x5d,             // pop %rbp
        0xc3,             // ret
    };
    uint8_t *code = check_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                              "mmap");
    memcpy(code, bytes, sizeof bytes);
    check(mprotect(code, PAGE, PROT_READ | PROT_EXEC), "mprotect");
    snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
    if (strcmp(name, "-") != 0) {
        FILE *map = fopen(path, "w");
        if (!map) die(path);
        fprintf(map, "%lx %lx code_that_was_here_before\n", (long)code, PAGE);
        fprintf(map, "no such line\n%lx %lx %s\n", (long)code, sizeof bytes, name);
        fclose(map);
    }
    code_t function;
    memcpy(&function, &code, sizeof function);
    return function;
}

FRAME void work(const char *name, int argc, char **argv) {
    code_t code = make_code(name);
    long interval = arg(argc, argv, 4, 0);
    for (long i = 0; i < arg(argc, argv, 2, 20); i++) {
        code(leak_jit, (size_t)arg(argc, argv, 3, MIB));
        sleep_us(interval);
    }
    truth_begin("jit");
    truth_kind(&leaks);
    truth_word("perf_map", path);
    truth_end();
}

int main(int argc, char **argv) {
    pid_t child = argc > 5 ? fork() : 1;
    check(child, "fork");
    const char *names[] = {argc > 1 ? argv[1] : "jit_code", argv[argc > 5 ? 5 : 0]};
    // One place in the code, so that the stacks of both are the same.
    work(names[child == 0], argc, argv);
    int status = 0;
    if (argc > 5 && child != 0) check(waitpid(child, &status, 0), "waitpid");
    return status != 0;
}
