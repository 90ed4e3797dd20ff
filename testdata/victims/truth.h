// What every victim prints about itself, so that a test can compare maptrail's account with it.
//
// A victim counts what it maps and gives back under *kinds*. A kind is named after the function that
// makes its mappings: of every stack that holds a frame of that name, maptrail must report these sums.
// The last line on standard output is one JSON object:
//   {"victim":NAME,"pid":N,"kinds":{FUNCTION:{"made":N,"made_bytes":N,"released":N,
//    "released_bytes":N,"held":N,"held_bytes":N},...},KEY:VALUE,...}
// A mapping that is partly released counts as held; it counts as released when its last page goes.
// Printing maps nothing: a static buffer and one write(2).
//
// Nothing here times or checks maptrail; that is for the tests.
#ifndef TRUTH_H
#define TRUTH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define KIB 1024UL
#define MIB (1024UL * KIB)
// A function that keeps its name and its frame.
#define FRAME __attribute__((noinline, noclone, used))
#define UNUSED __attribute__((unused))

struct kind {
    const char *name;
    atomic_long made, made_bytes, released, released_bytes;
};

UNUSED static void made(struct kind *k, size_t bytes) {
    atomic_fetch_add(&k->made, 1);
    atomic_fetch_add(&k->made_bytes, (long)bytes);
}

// Part of a mapping is gone.
UNUSED static void released_part(struct kind *k, size_t bytes) {
    atomic_fetch_add(&k->released_bytes, (long)bytes);
}

// The rest of a mapping, `bytes` long, is gone.
UNUSED static void released(struct kind *k, size_t bytes) {
    atomic_fetch_add(&k->released, 1);
    released_part(k, bytes);
}

UNUSED __attribute__((noreturn)) static void die(const char *what) {
    dprintf(2, "%s: %s\n", what, strerror(errno));
    _exit(99);
}

// The address of a new mapping; a failure ends the victim.
UNUSED static void *check_map(void *p, const char *what) {
    if (p == MAP_FAILED) die(what);
    return p;
}

UNUSED static void check(long result, const char *what) {
    if (result < 0) die(what);
}

// The i-th argument as a number.
UNUSED static long arg(int argc, char **argv, int i, long otherwise) {
    return i < argc ? strtol(argv[i], NULL, 0) : otherwise;
}

// Writes to every page, so that all of the range is resident.
UNUSED static void touch(void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += PAGE) ((volatile char *)p)[i] = 1;
}

UNUSED static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

UNUSED static void sleep_us(long us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    while (us > 0 && nanosleep(&t, &t) < 0 && errno == EINTR) {}
}

// xorshift64: the same numbers on every run.
UNUSED static unsigned long next_random(unsigned long *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static char truth_text[16384];
static size_t truth_len, truth_kinds;

UNUSED __attribute__((format(printf, 1, 2))) static void truth_add(const char *format, ...) {
    va_list list;
    va_start(list, format);
    int n = vsnprintf(truth_text + truth_len, sizeof truth_text - truth_len, format, list);
    va_end(list);
    if (n < 0 || truth_len + (size_t)n >= sizeof truth_text) {
        errno = ENOBUFS;
        die("truth");
    }
    truth_len += (size_t)n;
}

UNUSED static void truth_begin(const char *victim) {
    truth_len = truth_kinds = 0;
    truth_add("{\"victim\":\"%s\",\"pid\":%d,\"kinds\":{", victim, (int)getpid());
}

// Every kind comes before the first number.
UNUSED static void truth_kind(struct kind *k) {
    truth_add("%s\"%s\":{\"made\":%ld,\"made_bytes\":%ld,\"released\":%ld,\"released_bytes\":%ld,"
              "\"held\":%ld,\"held_bytes\":%ld}",
              truth_kinds++ ? "," : "", k->name, (long)k->made, (long)k->made_bytes, (long)k->released,
              (long)k->released_bytes, (long)(k->made - k->released),
              (long)(k->made_bytes - k->released_bytes));
}

static int truth_in_kinds = 1;

UNUSED static void truth_number(const char *key, long value) {
    truth_add("%s,\"%s\":%ld", truth_in_kinds ? "}" : "", key, value);
    truth_in_kinds = 0;
}

UNUSED static void truth_word(const char *key, const char *value) {
    truth_add("%s,\"%s\":\"%s\"", truth_in_kinds ? "}" : "", key, value);
    truth_in_kinds = 0;
}

UNUSED static void truth_end(void) {
    truth_add("%s}\n", truth_in_kinds ? "}" : "");
    for (size_t done = 0; done < truth_len;) {
        ssize_t n = write(1, truth_text + done, truth_len - done);
        if (n < 0) die("write");
        done += (size_t)n;
    }
    truth_in_kinds = 1;
}

#endif
