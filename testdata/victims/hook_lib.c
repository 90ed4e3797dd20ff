// A library that rewrites libc's mmap and munmap in memory, as UCX does, and leaks in its hook.
//
// build: -shared -fPIC
//
// hook_install(EVERY) writes a jump over the first bytes of libc's functions; the replacements make
// the call themselves through syscall(). Every EVERY-th munmap leaks 64 KiB (leak_in_hook).
// Used by `hooked`, which says what maptrail must make of it.
#include "truth.h"

static struct kind leaks = {.name = "leak_in_hook"};
static atomic_long unmaps;
static long leak_every;

FRAME void leak_in_hook(void) {
    size_t bytes = 64 * KIB;
    void *p = (void *)syscall(SYS_mmap, NULL, bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    touch(check_map(p, "mmap"), bytes);
    made(&leaks, bytes);
}

FRAME void *hook_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset) {
    return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

FRAME int hook_munmap(void *addr, size_t len) {
    if (atomic_fetch_add(&unmaps, 1) % leak_every == leak_every - 1) leak_in_hook();
    return (int)syscall(SYS_munmap, addr, len);
}

// movabs $target, %r11; jmp *%r11
static void overwrite(void *function, void *target) {
    unsigned char code[13] = {0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0xff, 0xe3};
    memcpy(code + 2, &target, 8);
    char *page = (char *)((unsigned long)function & ~(PAGE - 1));
    check(syscall(SYS_mprotect, page, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect");
    memcpy(function, code, sizeof code);
    check(syscall(SYS_mprotect, page, 2 * PAGE, PROT_READ | PROT_EXEC), "mprotect");
}

void hook_install(void *libc_mmap, void *libc_munmap, long every) {
    leak_every = every;
    overwrite(libc_mmap, (void *)hook_mmap);
    overwrite(libc_munmap, (void *)hook_munmap);
}

struct kind *hook_truth(void) { return &leaks; }
