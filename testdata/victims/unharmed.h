// What the checking victim `unharmed` is made of: verdicts, random numbers, pauses, and errands.
//
// A kind of work is a function that does one round of calls and checks every result. Where a call has to
// wait for somebody, the kind sends its partner, a thread of its own, on an errand: later().
#ifndef UNHARMED_H
#define UNHARMED_H

#include "truth.h"
#include <pthread.h>
#include <signal.h>

struct work {
    const char *name;
    void (*round)(void);
    int forks;
    atomic_long rounds;
    atomic_int over;
};

// What this thread works on.
static _Thread_local struct work *mine;
static _Thread_local unsigned long dice;

// The first wrong result ends the victim.
__attribute__((noreturn, format(printf, 1, 2))) static void wrong(const char *format, ...) {
    static atomic_int said;
    if (atomic_exchange(&said, 1)) pause();
    char text[512];
    int n = snprintf(text, sizeof text, "WRONG %s: ", mine->name);
    va_list list;
    va_start(list, format);
    n += vsnprintf(text + n, sizeof text - (size_t)n, format, list);
    va_end(list);
    dprintf(1, "%s\n", text);
    _exit(1);
}

static const char *error_of(long result) {
    const char *name = result == -1 ? strerrorname_np(errno) : "no error";
    return name ? name : errno == 514 ? "ERESTARTNOHAND" : "an error without a name";
}

UNUSED static void gives(const char *call, long got, long wanted) {
    if (got != wanted) wrong("%s gave %ld (%s), not %ld", call, got, error_of(got), wanted);
}

UNUSED static void fails(const char *call, long got, int error) {
    if (got != -1 || errno != error)
        wrong("%s gave %ld (%s), not %s", call, got, error_of(got), strerrorname_np(error));
}

UNUSED static void holds(const char *what, int good) {
    if (!good) wrong("%s", what);
}

// A wait that began at `begin` may end late, never early.
UNUSED static void lasted(const char *call, long begin, long us) {
    long early = begin + us * 1000 - now_ns();
    if (early > 0) wrong("%s ended %ld ns early", call, early);
}

UNUSED static long up_to(long limit) { return (long)(next_random(&dice) % (unsigned long)limit); }

// Lets others have the processor.
UNUSED static void rest(long us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    long begin = now_ns();
    gives("nanosleep", nanosleep(&t, NULL), 0);
    lasted("nanosleep", begin, us);
}

struct errand {
    long us;
    void (*act)(long);
    long arg;
};

static _Thread_local struct partner {
    struct work *work;
    pthread_t owner;
    int errands[2], done[2];
} *partner;

static void *run_errands(void *hired) {
    partner = hired;
    mine = partner->work;
    dice = (unsigned long)now_ns();
    for (;;) {
        struct errand errand;
        gives("read", read(partner->errands[0], &errand, sizeof errand), sizeof errand);
        if (errand.us) rest(errand.us);
        errand.act(errand.arg);
        gives("write", write(partner->done[1], "", 1), 1);
    }
    return NULL;
}

// The signals that nobody takes but the kinds that wait for them.
static sigset_t blocked;

static struct partner *hire(void) {
    struct partner *new = calloc(1, sizeof *new);
    holds("calloc", new != NULL);
    new->work = mine;
    new->owner = pthread_self();
    gives("pipe", pipe(new->errands), 0);
    gives("pipe", pipe(new->done), 0);
    pthread_t id;
    sigset_t before;
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    gives("pthread_create", pthread_create(&id, NULL, run_errands, new), 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return new;
}

// Has the partner call act(arg) after a while. finished() must follow before the next errand.
UNUSED static void later(long us, void (*act)(long), long arg) {
    if (!partner) partner = hire();
    struct errand errand = {us, act, arg};
    gives("write", write(partner->errands[1], &errand, sizeof errand), sizeof errand);
}

UNUSED static void finished(void) {
    char byte;
    gives("read", read(partner->done[0], &byte, 1), 1);
}

#endif
