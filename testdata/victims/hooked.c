// A program whose library patches libc's mmap and munmap in memory and leaks in its munmap hook.
//
//   hooked [PAIRS=20000] [RATE=10000] [EVERY=100] [BYTES=16384]
//
// Loads hook_lib.so from its own directory, lets it patch libc, then calls libc's mmap (borrow) and
// munmap (give_back) PAIRS times, RATE a second (0: as fast as it can). The hook leaks 64 KiB at every
// EVERY-th munmap.
// maptrail must say: leak_in_hook, called by hook_munmap, called by give_back, holds
// PAIRS / EVERY * 64 KiB and is the worst stack; borrow holds nothing.
#include "truth.h"
#include <dlfcn.h>

static struct kind borrowed = {.name = "borrow"};

FRAME void *borrow(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), PAGE);
    made(&borrowed, bytes);
    return p;
}

FRAME void give_back(void *p, size_t bytes) {
    check(munmap(p, bytes), "munmap");
    released(&borrowed, bytes);
}

static void *symbol(void *handle, const char *name) {
    void *p = dlsym(handle, name);
    if (!p) {
        dprintf(2, "%s\n", dlerror());
        _exit(99);
    }
    return p;
}

int main(int argc, char **argv) {
    long pairs = arg(argc, argv, 1, 20000), rate = arg(argc, argv, 2, 10000);
    long every = arg(argc, argv, 3, 100);
    size_t bytes = (size_t)arg(argc, argv, 4, 16384);
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
    check(n, "readlink");
    path[n] = 0;
    strcpy(strrchr(path, '/'), "/hook_lib.so");
    void *lib = dlopen(path, RTLD_NOW);
    if (!lib) {
        dprintf(2, "%s\n", dlerror());
        return 99;
    }
    void (*install)(void *, void *, long) = (void (*)(void *, void *, long))symbol(lib, "hook_install");
    struct kind *(*hook_truth)(void) = (struct kind * (*)(void)) symbol(lib, "hook_truth");
    install(symbol(RTLD_DEFAULT, "mmap"), symbol(RTLD_DEFAULT, "munmap"), every);

    long begin = now_ns();
    for (long i = 0; i < pairs; i++) {
        give_back(borrow(bytes), bytes);
        if (rate && i % 10 == 9) {
            long ahead = (i + 1) * 1000000000L / rate - (now_ns() - begin);
            sleep_us(ahead / 1000);
        }
    }
    long elapsed = now_ns() - begin;
    truth_begin("hooked");
    truth_kind(hook_truth());
    truth_kind(&borrowed);
    truth_number("elapsed_ns", elapsed);
    truth_end();
    return 0;
}
