// Mappings that the kernel itself makes larger: the stack, and MAP_GROWSDOWN.
//
//   grows_down [PAGES=64] [STACK_KIB=3072]
//
// grow_region maps one page with MAP_GROWSDOWN and touches PAGES pages below it, one by one: no system
// call is made for them. Then the main thread's stack is used STACK_KIB deep.
// maptrail must say: drift 0; what the kernel mapped alone is counted apart (kernel_bytes), not as drift.
#include "truth.h"

static struct kind region = {.name = "grow_region"};

// The end of 64 MiB that nobody else will take: this program has one thread.
FRAME char *room_below(void) {
    size_t room = 64 * MIB;
    char *low = check_map(mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    check(munmap(low, room), "munmap");
    return low + room;
}

FRAME char *grow_region(char *end) {
    char *p = check_map(mmap(end - 2 * PAGE, PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0),
                        "mmap");
    made(&region, PAGE);
    return p;
}

FRAME int deeper(long kib) {
    volatile char frame[1024];
    frame[0] = frame[1023] = (char)kib;
    return kib > 1 ? deeper(kib - 1) + frame[0] : frame[1023];
}

int main(int argc, char **argv) {
    long pages = arg(argc, argv, 1, 64);
    volatile char *p = grow_region(room_below());
    for (long i = 0; i <= pages; i++) p[-i * (long)PAGE] = 1;
    long sum = deeper(arg(argc, argv, 2, 3072));
    truth_begin("grows_down");
    truth_add("\"grow_region\":{\"made\":1}");
    truth_number("grown_bytes", pages * (long)PAGE);
    truth_number("sum", sum);
    truth_end();
    return 0;
}
