// A 32-bit static program without any library.
//
// build: -m32 -ffreestanding -nostdlib -static -fno-pie -no-pie -fno-stack-protector
//
//   nolibc32
//
// leak32 maps 2 pages by mmap2 25 times and keeps them; churn32 maps and unmaps 4 pages 25 times by the
// old mmap (number 90); heap32 raises the heap by 3 pages. Exits with status 5.
// maptrail must say: leak32 holds 50 pages, churn32 none, heap32 three.
// (It cannot include truth.h, but prints the same line.)

static const char truth[] =
    "{\"victim\":\"nolibc32\",\"kinds\":{"
    "\"leak32\":{\"made\":25,\"made_bytes\":204800,\"released\":0,\"released_bytes\":0,"
    "\"held\":25,\"held_bytes\":204800},"
    "\"churn32\":{\"made\":25,\"made_bytes\":409600,\"released\":25,\"released_bytes\":409600,"
    "\"held\":0,\"held_bytes\":0},"
    "\"heap32\":{\"made\":1,\"made_bytes\":12288,\"released\":0,\"released_bytes\":0,"
    "\"held\":1,\"held_bytes\":12288}}}\n";

#define FRAME __attribute__((noinline, noclone, used))

static long call(long number, long a, long b, long c, long d, long e) {
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
                     : "memory", "cc");
    return result;
}

static void exit_with(long code) {
    for (;;) call(252, code, 0, 0, 0, 0);
}

static long checked(long result) {
    if (result < 0 && result > -4096) exit_with(99);
    return result;
}

// The sixth argument of mmap2, the offset, is in ebp: whatever it holds is ignored for anonymous memory.
FRAME void leak32(void) {
    char *p = (char *)checked(call(192, 0, 8192, 3, 0x22, -1));
    p[0] = p[4096] = 1;
}

FRAME void churn32(void) {
    long args[6] = {0, 16384, 3, 0x22, -1, 0};
    char *p = (char *)checked(call(90, (long)args, 0, 0, 0, 0));
    p[0] = 1;
    checked(call(91, (long)p, 16384, 0, 0, 0));
}

FRAME void heap32(void) {
    unsigned long end = (unsigned long)call(45, 0, 0, 0, 0, 0);
    end = (end + 4095) & ~4095ul;
    if ((unsigned long)call(45, (long)(end + 12288), 0, 0, 0, 0) != end + 12288) exit_with(98);
    *(volatile char *)end = 1;
}

FRAME void main32(void) {
    for (int i = 0; i < 25; i++) {
        leak32();
        churn32();
    }
    heap32();
    call(4, 1, (long)truth, sizeof truth - 1, 0, 0);
    exit_with(5);
}

__asm__(".globl _start\n.type _start, @function\n_start:\n.cfi_startproc\n.cfi_undefined %eip\n"
        "xor %ebp, %ebp\nand $-16, %esp\ncall main32\nhlt\n.cfi_endproc\n.size _start, .-_start\n");
