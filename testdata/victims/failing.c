// Calls that fail, some of them after they have acted in part.
//
//   failing [COUNT=10]
//
// Each failing call's errno is printed by name; a victim that cannot make its call fail as it should
// says what came instead.
//   map_einval         mmap of length 0
//   map_ebadf          mmap of a file that is not open
//   map_enomem         mmap beyond what the address space has
//   map_eexist         MAP_FIXED_NOREPLACE over a live mapping
//   unmap_einval       munmap of an address that is not on a page
//   unmap_nothing      munmap of a hole: succeeds
//   remap_efault       mremap of a hole
//   protect_hole       mprotect over 2 mapped pages, a hole, 2 mapped pages: ENOMEM, and the first two
//                      pages are changed all the same
//   remap_destroys     mremap(MREMAP_FIXED | MREMAP_DONTUNMAP) under RLIMIT_AS: ENOMEM after its
//                      destination of 6 pages has been unmapped ("destination_gone" says whether)
//   map_refused        mmap(MAP_FIXED) of a perf event with a size that it refuses: EINVAL, and the live
//                      mapping of 4 pages may be gone ("covered_gone" says how often); "-" without
//                      perf events
//   shmdt_einval       shmdt of nothing
//   brk_refused        brk below the heap: returns the old end
// maptrail must say: drift 0; protect_hole holds 4 pages a round; remap_destroys holds its 6 source
// pages, and its destination's 6 only where "destination_gone" is 0; so for the 4 pages of map_refused.
#include "truth.h"
#include <linux/perf_event.h>
#include <sys/resource.h>
#include <sys/shm.h>

static struct kind hole = {.name = "protect_hole"}, destroyed = {.name = "remap_destroys"};
static struct kind covered = {.name = "map_refused"};
static const char *names[12];
static long rounds_gone, covered_gone;
static int event = -1;

static char *map(struct kind *k, char *at, size_t pages, int flags) {
    char *p = check_map(mmap(at, pages * PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0),
                        "mmap");
    if (k) made(k, pages * PAGE);
    return p;
}

static const char *name(long result) {
    if (result != -1) return "no error";
    const char *n = strerrorname_np(errno);
    return n ? n : "?";
}

static const char *map_error(size_t len, int flags, int fd, void *at) {
    return name((long)mmap(at, len, PROT_READ, flags, fd, 0));
}

FRAME const char *protect_hole(void) {
    char *p = map(&hole, NULL, 5, 0);
    check(munmap(p + 2 * PAGE, PAGE), "munmap");
    released_part(&hole, PAGE);
    return name(mprotect(p, 5 * PAGE, PROT_READ));
}

FRAME const char *remap_destroys(void) {
    char *from = map(&destroyed, NULL, 6, 0), *to = map(&destroyed, NULL, 6, 0);
    touch(from, 6 * PAGE);
    touch(to, 6 * PAGE);
    struct rlimit old, none = {PAGE, 0};
    check(getrlimit(RLIMIT_AS, &old), "getrlimit");
    none.rlim_max = old.rlim_max;
    check(setrlimit(RLIMIT_AS, &none), "setrlimit");
    const char *result = name((long)mremap(from, 6 * PAGE, 6 * PAGE,
                                           MREMAP_MAYMOVE | MREMAP_FIXED | 4 /* MREMAP_DONTUNMAP */, to));
    check(setrlimit(RLIMIT_AS, &old), "setrlimit");
    unsigned char resident[6];
    if (mincore(to, 6 * PAGE, resident) == -1 && errno == ENOMEM) {
        released(&destroyed, 6 * PAGE);
        rounds_gone++;
    }
    return result;
}

FRAME const char *map_refused(void) {
    if (event < 0) return "-";
    char *p = map(&covered, NULL, 4, 0);
    touch(p, 4 * PAGE);
    // It wants a power of two of pages and one.
    const char *result = map_error(4 * PAGE, MAP_PRIVATE | MAP_FIXED, event, p);
    unsigned char resident[4];
    if (mincore(p, 4 * PAGE, resident) == -1 && errno == ENOMEM) {
        released(&covered, 4 * PAGE);
        covered_gone++;
    }
    return result;
}

int main(int argc, char **argv) {
    static const char *keys[] = {"map_einval",   "map_ebadf",     "map_enomem",   "map_eexist",
                                 "unmap_einval", "unmap_nothing", "remap_efault", "protect_hole",
                                 "remap_destroys", "shmdt_einval", "brk_refused",
                                 "map_refused"};
    long count = arg(argc, argv, 1, 10);
    int anon = MAP_PRIVATE | MAP_ANONYMOUS;
    // The hole is smaller than every mapping made below, so nothing will ever be put there.
    char *live = map(NULL, NULL, 3, 0), *empty = map(NULL, NULL, 5, 0) + PAGE;
    check(munmap(empty, 3 * PAGE), "munmap");
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE, .size = sizeof attr, .config = PERF_COUNT_SW_DUMMY, .exclude_kernel = 1};
    event = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
    for (long i = 0; i < count; i++) {
        names[0] = map_error(0, anon, -1, NULL);
        names[1] = map_error(PAGE, MAP_PRIVATE, 9999, NULL);
        names[2] = map_error(1UL << 48, anon, -1, NULL);
        names[3] = map_error(PAGE, anon | MAP_FIXED_NOREPLACE, -1, live + PAGE);
        names[4] = name(munmap(live + 1, PAGE));
        names[5] = name(munmap(empty, 3 * PAGE));
        names[6] = name((long)mremap(empty, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
        names[7] = protect_hole();
        names[8] = remap_destroys();
        names[9] = name(shmdt(live));
        long end = syscall(SYS_brk, 0);
        names[10] = syscall(SYS_brk, PAGE) == end ? "old end" : "moved";
        names[11] = map_refused();
    }
    truth_begin("failing");
    truth_kind(&hole);
    truth_kind(&destroyed);
    truth_kind(&covered);
    for (int i = 0; i < 12; i++) truth_word(keys[i], names[i]);
    truth_number("destination_gone", rounds_gone);
    truth_number("covered_gone", covered_gone);
    truth_end();
    return 0;
}
