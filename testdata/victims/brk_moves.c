// The end of the heap goes up and down.
//
//   brk_moves [ROUNDS=50] [STEP=70001]
//
// heap_leak raises the heap's end by STEP bytes (not a multiple of a page) and leaves it there;
// heap_wave raises it by five times that and lowers it again, in two steps. heap_refused asks for an
// end below the heap's start, which the kernel refuses by returning the old end.
// maptrail must say: heap_leak holds what it raised, in whole pages; heap_wave holds nothing.
#include "truth.h"

static struct kind leaks = {.name = "heap_leak"}, wave = {.name = "heap_wave"};

static unsigned long brk_to(unsigned long end) { return (unsigned long)syscall(SYS_brk, end); }

static unsigned long pages(unsigned long end) { return (end + PAGE - 1) / PAGE * PAGE; }

static unsigned long move(unsigned long end) {
    if (brk_to(end) != end) die("brk");
    return end;
}

FRAME void heap_leak(unsigned long step) {
    unsigned long end = brk_to(0);
    unsigned long more = pages(move(end + step)) - pages(end);
    if (more) made(&leaks, more);
}

FRAME void heap_wave(unsigned long step) {
    unsigned long end = brk_to(0);
    unsigned long more = pages(move(end + 5 * step)) - pages(end);
    made(&wave, more);
    move(end + 2 * step);
    move(end);
    released(&wave, more);
}

FRAME void heap_refused(void) {
    unsigned long end = brk_to(0);
    if (brk_to(PAGE) != end) die("brk went below the heap");
}

int main(int argc, char **argv) {
    long rounds = arg(argc, argv, 1, 50);
    unsigned long step = (unsigned long)arg(argc, argv, 2, 70001);
    for (long i = 0; i < rounds; i++) {
        heap_leak(step);
        heap_wave(step);
        heap_refused();
    }
    truth_begin("brk_moves");
    truth_kind(&leaks);
    truth_kind(&wave);
    truth_end();
    return 0;
}
