// Leaks by the raw mmap system call at a known rate, past libc's mmap and any heap profiler.
//
//   raw_leak [LEAKS=600] [BYTES=262144] [INTERVAL_US=1000] [PAIRS=4] [RESERVE_MIB=0]
//
// Every INTERVAL_US it leaks one touched mapping of BYTES (leak_raw), and between leaks maps and
// unmaps PAIRS others of the same size (churn_raw). RESERVE_MIB, if given, is mapped once, at the
// start, without access (reserve_once).
// maptrail must say: leak_raw holds LEAKS * BYTES and is the worst stack, even beside a reservation
// many times its size; churn_raw holds nothing and is no leak.
#include "truth.h"

static struct kind leaks = {.name = "leak_raw"}, churn = {.name = "churn_raw"},
                   reserve = {.name = "reserve_once"};

static void *raw_map(size_t bytes, int prot) {
    return (void *)syscall(SYS_mmap, NULL, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                           -1, 0L);
}

FRAME void leak_raw(size_t bytes) {
    void *p = check_map(raw_map(bytes, PROT_READ | PROT_WRITE), "mmap");
    touch(p, bytes);
    made(&leaks, bytes);
}

FRAME void churn_raw(size_t bytes) {
    void *p = check_map(raw_map(bytes, PROT_READ | PROT_WRITE), "mmap");
    touch(p, PAGE);
    made(&churn, bytes);
    check(syscall(SYS_munmap, p, bytes), "munmap");
    released(&churn, bytes);
}

FRAME void reserve_once(size_t bytes) {
    check_map(raw_map(bytes, PROT_NONE), "mmap");
    made(&reserve, bytes);
}

FRAME void decode_frame(size_t bytes, long pairs) {
    leak_raw(bytes);
    for (long i = 0; i < pairs; i++) churn_raw(bytes);
}

int main(int argc, char **argv) {
    long count = arg(argc, argv, 1, 600), interval = arg(argc, argv, 3, 1000);
    size_t bytes = (size_t)arg(argc, argv, 2, 262144), mib = (size_t)arg(argc, argv, 5, 0);
    long begin = now_ns();
    if (mib) reserve_once(mib * MIB);
    for (long i = 0; i < count; i++) {
        decode_frame(bytes, arg(argc, argv, 4, 4));
        sleep_us(interval);
    }
    long elapsed = now_ns() - begin;
    truth_begin("raw_leak");
    truth_kind(&leaks);
    truth_kind(&churn);
    truth_kind(&reserve);
    truth_number("elapsed_ns", elapsed);
    truth_end();
    return 0;
}
