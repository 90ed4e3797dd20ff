// Mappings with something behind them: System V segments, memfds, files, shared anonymous memory.
//
//   shared [COUNT=20]
//
//   shm_kept / shm_returned        shmat of 5 pages; the second is detached by shmdt
//   shm_split                      a hole is made in an attached segment, then shmdt takes both parts
//   shm_remapped                   shmat with SHM_REMAP over a mapping of the same size
//   memfd_kept / memfd_returned    6 shared pages of a memfd
//   file_kept / file_returned      7 private pages of an unlinked file, from page 3 on
//   file_named                     2 pages of a file that still has its name, read-only
//   anon_shared                    4 pages
// maptrail must say: the *_kept, shm_remapped, file_named and anon_shared hold theirs, the others
// nothing. (file_named's file is removed at the end, so its path in the last maps is "(deleted)".)
#include "truth.h"
#include <fcntl.h>
#include <sys/ipc.h>
#include <sys/shm.h>

static struct kind kinds[] = {
    {.name = "shm_kept"},    {.name = "shm_returned"},   {.name = "shm_split"},
    {.name = "shm_remapped"}, {.name = "memfd_kept"},    {.name = "memfd_returned"},
    {.name = "file_kept"},   {.name = "file_returned"},  {.name = "file_named"},
    {.name = "anon_shared"},
};
enum { SHM_KEPT, SHM_RETURNED, SHM_SPLIT, SHM_REMAPPED, MEMFD_KEPT, MEMFD_RETURNED, FILE_KEPT,
       FILE_RETURNED, FILE_NAMED, ANON_SHARED, KINDS };

static int segment, memfd, file, named;

static char *attach(int kind, void *at, int flags) {
    char *p = check_map(shmat(segment, at, flags), "shmat");
    touch(p, PAGE);
    made(&kinds[kind], 5 * PAGE);
    return p;
}

static char *map(int kind, size_t pages, int prot, int flags, int fd, off_t offset) {
    char *p = check_map(mmap(NULL, pages * PAGE, prot, flags, fd, offset), "mmap");
    made(&kinds[kind], pages * PAGE);
    return p;
}

static void unmap(int kind, char *p, size_t pages) {
    check(munmap(p, pages * PAGE), "munmap");
    released(&kinds[kind], pages * PAGE);
}

FRAME void shm_kept(void) { touch(attach(SHM_KEPT, NULL, 0), PAGE); }

FRAME void shm_returned(void) {
    check(shmdt(attach(SHM_RETURNED, NULL, SHM_RND)), "shmdt");
    released(&kinds[SHM_RETURNED], 5 * PAGE);
}

FRAME void shm_split(void) {
    char *p = attach(SHM_SPLIT, NULL, 0);
    check(munmap(p + 2 * PAGE, PAGE), "munmap");
    check(shmdt(p), "shmdt");
    released(&kinds[SHM_SPLIT], 5 * PAGE);
}

FRAME void shm_remapped(void) {
    char *p = map(SHM_REMAPPED, 5, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    attach(SHM_REMAPPED, p, SHM_REMAP);
    released(&kinds[SHM_REMAPPED], 5 * PAGE);
}

FRAME void memfd_kept(void) {
    touch(map(MEMFD_KEPT, 6, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0), 6 * PAGE);
}

FRAME void memfd_returned(void) {
    unmap(MEMFD_RETURNED, map(MEMFD_RETURNED, 6, PROT_READ, MAP_SHARED, memfd, 0), 6);
}

FRAME void file_kept(void) {
    touch(map(FILE_KEPT, 7, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 3 * PAGE), 7 * PAGE);
}

FRAME void file_returned(void) {
    unmap(FILE_RETURNED, map(FILE_RETURNED, 7, PROT_READ, MAP_PRIVATE, file, 3 * PAGE), 7);
}

FRAME void file_named(void) {
    char *p = map(FILE_NAMED, 2, PROT_READ, MAP_SHARED, named, 0);
    __asm__ volatile("" : : "r"(p));
}

FRAME void anon_shared(void) {
    touch(map(ANON_SHARED, 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 4 * PAGE);
}

static int temporary(char *path) {
    const char *dir = getenv("TMPDIR");
    snprintf(path, 4096, "%s/maptrail-victim-XXXXXX", dir ? dir : "/tmp");
    int fd = mkstemp(path);
    check(fd, "mkstemp");
    check(ftruncate(fd, 16 * PAGE), "ftruncate");
    return fd;
}

int main(int argc, char **argv) {
    static char gone[4096], there[4096];
    long count = arg(argc, argv, 1, 20);
    segment = shmget(IPC_PRIVATE, 5 * PAGE, 0600);
    check(segment, "shmget");
    memfd = memfd_create("victim", 0);
    check(memfd, "memfd_create");
    check(ftruncate(memfd, 6 * PAGE), "ftruncate");
    file = temporary(gone);
    check(unlink(gone), "unlink");
    named = temporary(there);
    for (long i = 0; i < count; i++) {
        shm_kept();
        shm_returned();
        shm_split();
        shm_remapped();
        memfd_kept();
        memfd_returned();
        file_kept();
        file_returned();
        file_named();
        anon_shared();
    }
    check(shmctl(segment, IPC_RMID, NULL), "shmctl");
    check(unlink(there), "unlink");
    truth_begin("shared");
    for (int i = 0; i < KINDS; i++) truth_kind(&kinds[i]);
    truth_end();
    return 0;
}
