// 32-bit memory calls from 64-bit code, by int 0x80.
//
// build: -mno-red-zone
//
//   int80 [COUNT=20]
//
//   i386_mmap2      number 192, offset in pages: 6 pages of a memfd from page 2 on, kept
//   i386_old_mmap   number 90, arguments in memory: 3 pages, kept
//   i386_unmapped   mmap2 of 4 pages and munmap (91)
//   i386_shmat      ipc (117, SHMAT): 5 pages, kept
//   i386_shmdt      the same, detached by ipc (SHMDT)
//   i386_remapped   mmap2 of 2 pages, mremap (163) to 5, mprotect (125) of one page, kept
//   mixed           mmap2 by int 0x80, unmapped by the 64-bit munmap
// In 64-bit mode number 90 is chmod, 91 fchmod, 117 setresuid, 125 capget, 192 lgetxattr.
// Also calls x32's mmap (bit 30 in the number) once and says what came of it ("x32": "ENOSYS" where the
// kernel lacks that ABI).
// maptrail must say: 6, 3, 0, 5, 0, 5 and 0 pages held for each round.
#include "truth.h"
#include <sys/ipc.h>
#include <sys/shm.h>

static struct kind kinds[] = {
    {.name = "i386_mmap2"}, {.name = "i386_old_mmap"}, {.name = "i386_unmapped"}, {.name = "i386_shmat"},
    {.name = "i386_shmdt"}, {.name = "i386_remapped"}, {.name = "mixed"},         {.name = "x32_mmap"},
};
enum { MMAP2, OLD_MMAP, UNMAPPED, SHMAT_, SHMDT_, REMAPPED, MIXED, X32, KINDS };

static int segment, memfd;
static unsigned *low; // memory below 4 GiB, for what 32-bit calls read and write

static long int80(long number, long a, long b, long c, long d, long e, long f) {
    // The sixth argument travels in rbp, which the compiler will not lend out.
    long result;
    register long r8 __asm__("r8") = f;
    __asm__ volatile("push %%rbp; .cfi_adjust_cfa_offset 8; .cfi_rel_offset %%rbp, 0\n\t"
                     "mov %%r8, %%rbp\n\t"
                     "int $0x80\n\t"
                     "pop %%rbp; .cfi_adjust_cfa_offset -8; .cfi_restore %%rbp"
                     : "=a"(result), "+r"(r8)
                     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
                     : "memory", "cc", "r9", "r10", "r11");
    return (int)result;
}

// The address of a new mapping: a 32-bit one, not to be sign-extended.
static char *address(long result, const char *what) {
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        die(what);
    }
    return (char *)(unsigned long)(unsigned)result;
}

static char *mmap2(int kind, size_t pages, int flags, long fd, long page) {
    char *p = address(int80(192, 0, (long)(pages * PAGE), PROT_READ | PROT_WRITE, flags, fd, page), "mmap2");
    touch(p, pages * PAGE);
    made(&kinds[kind], pages * PAGE);
    return p;
}

FRAME void i386_mmap2(void) { touch(mmap2(MMAP2, 6, MAP_SHARED, memfd, 2), PAGE); }

FRAME void i386_old_mmap(void) {
    unsigned args[6] = {0, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (unsigned)-1, 0};
    memcpy(low, args, sizeof args);
    touch(address(int80(90, (long)low, 0, 0, 0, 0, 0), "old mmap"), 3 * PAGE);
    made(&kinds[OLD_MMAP], 3 * PAGE);
}

FRAME void i386_unmapped(void) {
    char *p = mmap2(UNMAPPED, 4, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // As code does that keeps 32-bit addresses in signed integers: the kernel looks at the lower half.
    check(int80(91, (long)(int)(long)p, 4 * PAGE, 0, 0, 0, 0), "munmap");
    released(&kinds[UNMAPPED], 4 * PAGE);
}

static char *attach(int kind) {
    // ipc writes the address where its fourth argument says.
    check(int80(117, 21 /* SHMAT */, segment, 0, (long)low, 0, 0), "ipc shmat");
    char *p = (char *)(unsigned long)low[0];
    touch(p, 5 * PAGE);
    made(&kinds[kind], 5 * PAGE);
    return p;
}

FRAME void i386_shmat(void) { touch(attach(SHMAT_), PAGE); }

FRAME void i386_shmdt(void) {
    check(int80(117, 22 /* SHMDT */, 0, 0, 0, (long)attach(SHMDT_), 0), "ipc shmdt");
    released(&kinds[SHMDT_], 5 * PAGE);
}

FRAME void i386_remapped(void) {
    char *p = mmap2(REMAPPED, 2, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    p = address(int80(163, (long)p, 2 * PAGE, 5 * PAGE, MREMAP_MAYMOVE, 0, 0), "mremap");
    atomic_fetch_add(&kinds[REMAPPED].made_bytes, 3 * PAGE);
    check(int80(125, (long)p, PAGE, PROT_READ, 0, 0, 0), "mprotect");
}

FRAME void mixed(void) {
    char *p = mmap2(MIXED, 4, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(munmap(p, 4 * PAGE), "munmap");
    released(&kinds[MIXED], 4 * PAGE);
}

FRAME const char *x32_mmap(void) {
    long p = syscall(0x40000000L | SYS_mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    if (p == -1) return errno == ENOSYS ? "ENOSYS" : "another error";
    made(&kinds[X32], PAGE);
    return "mapped";
}

int main(int argc, char **argv) {
    long count = arg(argc, argv, 1, 20);
    low = check_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0),
                    "mmap");
    segment = shmget(IPC_PRIVATE, 5 * PAGE, 0600);
    check(segment, "shmget");
    memfd = memfd_create("victim", 0);
    check(ftruncate(memfd, 8 * PAGE), "ftruncate");
    for (long i = 0; i < count; i++) {
        i386_mmap2();
        i386_old_mmap();
        i386_unmapped();
        i386_shmat();
        i386_shmdt();
        i386_remapped();
        mixed();
    }
    const char *x32 = x32_mmap();
    check(shmctl(segment, IPC_RMID, NULL), "shmctl");
    truth_begin("int80");
    for (int i = 0; i < KINDS; i++) truth_kind(&kinds[i]);
    truth_word("x32", x32);
    truth_end();
    return 0;
}
