// mremap in all its forms.
//
//   remap [COUNT=20]
//
// Each function maps and remaps in its own frame, so that what it holds is the same whichever of the
// two calls is taken for the birth. Bytes made are those mapped and those grown; a move makes nothing.
//   remap_grow      4 pages grown to 8 where they are (room was left behind them)
//   remap_move      4 pages grown to 8 with a neighbour in the way: they move
//   remap_shrink    8 pages shrunk to 3
//   remap_fixed     4 pages moved by MREMAP_FIXED onto 4 others, which are gone
//   remap_within    3 pages of 9 taken from the middle and moved away
//   remap_keep      4 pages moved by MREMAP_DONTUNMAP: the old range stays, empty
//   remap_twice     4 shared pages mapped a second time (old size 0)
//   remap_returned  4 pages moved, then unmapped at their new place
// maptrail must say: held 8, 8 (and the neighbour, 1), 3, 4, 9, 8, 8 and 0 pages for each round.
#include "truth.h"

static struct kind grow = {.name = "remap_grow"}, move = {.name = "remap_move"},
                   shrink = {.name = "remap_shrink"}, fixed = {.name = "remap_fixed"},
                   within = {.name = "remap_within"}, keep = {.name = "remap_keep"},
                   twice = {.name = "remap_twice"}, returned = {.name = "remap_returned"};

static char *map(struct kind *k, char *at, size_t pages, int flags) {
    int kind = flags & MAP_SHARED ? MAP_ANONYMOUS : MAP_ANONYMOUS | MAP_PRIVATE;
    char *p = check_map(mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, kind | flags, -1, 0), "mmap");
    touch(p, pages * PAGE);
    made(k, pages * PAGE);
    return p;
}

static char *remap(char *p, size_t from, size_t to, int flags, char *at) {
    return check_map(mremap(p, from * PAGE, to * PAGE, flags, at), "mremap");
}

// A place where `pages` pages are free: a mapping made and unmapped. Nothing else maps in between.
static char *room(struct kind *k, size_t pages) {
    char *p = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(munmap(check_map(p, "mmap"), pages * PAGE), "munmap");
    made(k, pages * PAGE);
    released(k, pages * PAGE);
    return p;
}

FRAME void remap_grow(void) {
    char *at = room(&grow, 8), *p = map(&grow, at, 4, MAP_FIXED_NOREPLACE);
    if (remap(p, 4, 8, 0, NULL) != p) die("moved");
    atomic_fetch_add(&grow.made_bytes, 4 * PAGE);
}

FRAME void remap_move(void) {
    char *at = room(&move, 8), *p = map(&move, at, 4, MAP_FIXED_NOREPLACE);
    map(&move, at + 4 * PAGE, 1, MAP_FIXED_NOREPLACE);
    if (remap(p, 4, 8, MREMAP_MAYMOVE, NULL) == p) die("not moved");
    atomic_fetch_add(&move.made_bytes, 4 * PAGE);
}

FRAME void remap_shrink(void) {
    remap(map(&shrink, NULL, 8, 0), 8, 3, 0, NULL);
    released_part(&shrink, 5 * PAGE);
}

FRAME void remap_fixed(void) {
    char *to = map(&fixed, NULL, 4, 0), *p = map(&fixed, NULL, 4, 0);
    if (remap(p, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) die("elsewhere");
    released(&fixed, 4 * PAGE);
}

FRAME void remap_within(void) {
    char *p = map(&within, NULL, 9, 0), *to = room(&within, 64);
    remap(p + 3 * PAGE, 3, 3, MREMAP_MAYMOVE | MREMAP_FIXED, to + 32 * PAGE);
}

FRAME void remap_keep(void) {
    remap(map(&keep, NULL, 4, 0), 4, 4, MREMAP_MAYMOVE | 4 /* MREMAP_DONTUNMAP */, NULL);
    made(&keep, 4 * PAGE);
}

FRAME void remap_twice(void) {
    remap(map(&twice, NULL, 4, MAP_SHARED), 0, 4, MREMAP_MAYMOVE, NULL);
    made(&twice, 4 * PAGE);
}

FRAME void remap_returned(void) {
    char *to = room(&returned, 4), *p = map(&returned, NULL, 4, 0);
    p = remap(p, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, to == p ? to - 64 * PAGE : to);
    check(munmap(p, 4 * PAGE), "munmap");
    released(&returned, 4 * PAGE);
}

int main(int argc, char **argv) {
    long count = arg(argc, argv, 1, 20);
    for (long i = 0; i < count; i++) {
        remap_grow();
        remap_move();
        remap_shrink();
        remap_fixed();
        remap_within();
        remap_keep();
        remap_twice();
        remap_returned();
    }
    truth_begin("remap");
    truth_kind(&grow);
    truth_kind(&move);
    truth_kind(&shrink);
    truth_kind(&fixed);
    truth_kind(&within);
    truth_kind(&keep);
    truth_kind(&twice);
    truth_kind(&returned);
    truth_end();
    return 0;
}
