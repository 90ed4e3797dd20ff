// What allocators do for alignment: map twice the size, unmap what sticks out on both sides.
//
//   align_trim [COUNT=40] [BYTES=1048576]
//
// Both functions make blocks of BYTES aligned to BYTES. aligned_kept keeps them, aligned_returned
// unmaps them in the end.
// maptrail must say: aligned_kept holds COUNT * BYTES, not twice that; aligned_returned holds nothing.
#include "truth.h"

static struct kind kept = {.name = "aligned_kept"}, returned = {.name = "aligned_returned"};

static char *aligned(struct kind *k, size_t bytes) {
    char *p = check_map(mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                        "mmap");
    made(k, 2 * bytes);
    char *block = (char *)(((unsigned long)p + bytes - 1) / bytes * bytes);
    size_t before = (size_t)(block - p), after = bytes - before;
    if (before) check(munmap(p, before), "munmap");
    if (after) check(munmap(block + bytes, after), "munmap");
    released_part(k, bytes);
    touch(block, bytes);
    return block;
}

FRAME char *aligned_kept(size_t bytes) {
    char *p = aligned(&kept, bytes);
    return p + 1;
}

FRAME char *aligned_returned(size_t bytes) {
    char *p = aligned(&returned, bytes);
    return p + 1;
}

int main(int argc, char **argv) {
    long count = arg(argc, argv, 1, 40);
    size_t bytes = (size_t)arg(argc, argv, 2, 1048576);
    for (long i = 0; i < count; i++) {
        aligned_kept(bytes);
        char *p = aligned_returned(bytes) - 1;
        check(munmap(p, bytes), "munmap");
        released(&returned, bytes);
    }
    truth_begin("align_trim");
    truth_kind(&kept);
    truth_kind(&returned);
    truth_end();
    return 0;
}
