// Mappings that are given back only in part.
//
//   partial_release [COUNT=50]
//
// Of COUNT mappings of 16 pages each: keep_tail unmaps the first four pages, keep_head the last four,
// keep_ends four in the middle, keep_none all of it in three pieces and out of order, and
// keep_around maps four pages over the middle by MAP_FIXED (which belong to overlay).
// maptrail must say: 12 pages held for each mapping of the first three and of keep_around, 4 for each
// of overlay, none for keep_none, which is no leak.
#include "truth.h"

static struct kind tail = {.name = "keep_tail"}, head = {.name = "keep_head"},
                   ends = {.name = "keep_ends"}, none = {.name = "keep_none"},
                   around = {.name = "keep_around"}, over = {.name = "overlay"};

static char *map(char *at, size_t pages, int flags) {
    return check_map(mmap(at, pages * PAGE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0),
                     "mmap");
}

static void unmap(char *p, size_t first, size_t pages) {
    check(munmap(p + first * PAGE, pages * PAGE), "munmap");
}

FRAME void keep_tail(void) {
    unmap(map(NULL, 16, 0), 0, 4);
    made(&tail, 16 * PAGE);
    released_part(&tail, 4 * PAGE);
}

FRAME void keep_head(void) {
    unmap(map(NULL, 16, 0), 12, 4);
    made(&head, 16 * PAGE);
    released_part(&head, 4 * PAGE);
}

FRAME void keep_ends(void) {
    unmap(map(NULL, 16, 0), 6, 4);
    made(&ends, 16 * PAGE);
    released_part(&ends, 4 * PAGE);
}

FRAME void keep_none(void) {
    char *p = map(NULL, 16, 0);
    unmap(p, 5, 5);
    unmap(p, 0, 5);
    unmap(p, 10, 6);
    made(&none, 16 * PAGE);
    released(&none, 16 * PAGE);
}

FRAME void overlay(char *p) {
    map(p + 6 * PAGE, 4, MAP_FIXED);
    made(&over, 4 * PAGE);
}

FRAME char *keep_around(void) {
    made(&around, 16 * PAGE);
    return map(NULL, 16, 0);
}

int main(int argc, char **argv) {
    long count = arg(argc, argv, 1, 50);
    for (long i = 0; i < count; i++) {
        keep_tail();
        keep_head();
        keep_ends();
        keep_none();
        overlay(keep_around());
        released_part(&around, 4 * PAGE);
    }
    truth_begin("partial_release");
    truth_kind(&tail);
    truth_kind(&head);
    truth_kind(&ends);
    truth_kind(&none);
    truth_kind(&around);
    truth_kind(&over);
    truth_end();
    return 0;
}
