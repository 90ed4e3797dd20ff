// Moves the text of the program that it is preloaded into to memory without a file, as programs do that
// want it in larger pages, before anything of that program runs. The program must not notice, and every
// stack must still name it.
// build: -shared -fPIC
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096UL

static void move(uintptr_t start, uintptr_t end) {
    size_t bytes = end - start;
    void *copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        abort();
    memcpy(copy, (void *)start, bytes);
    if (mprotect(copy, bytes, PROT_READ | PROT_EXEC) != 0 ||
        mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start) == MAP_FAILED)
        abort();
}

// The first object is the program.
static int first(struct dl_phdr_info *info, size_t size, void *none) {
    (void)size;
    (void)none;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_X) {
            uintptr_t start = (info->dlpi_addr + segment->p_vaddr) & ~(PAGE - 1);
            uintptr_t end = info->dlpi_addr + segment->p_vaddr + segment->p_memsz;
            move(start, (end + PAGE - 1) & ~(PAGE - 1));
        }
    }
    return 1;
}

__attribute__((constructor)) static void move_program(void) { dl_iterate_phdr(first, NULL); }
