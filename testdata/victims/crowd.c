// Many threads that do nothing but map and unmap, and one that has work to do.
//
//   crowd [THREADS=150] [CALLS=20]
//
// THREADS threads map and unmap for ever. The main thread maps CALLS times, keeps that, and ends the
// process in the middle of their calls.
//   main_map    mmap of one page; kept
// maptrail must say: CALLS pages held. It must not keep the main thread waiting for ever.
#include "truth.h"
#include <pthread.h>

static struct kind kept = {.name = "main_map"};

static void *busy(void *nothing) {
    (void)nothing;
    for (;;) {
        void *p = check_map(mmap(NULL, 64 * KIB, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
        check(munmap(p, 64 * KIB), "munmap");
    }
    return NULL;
}

FRAME void main_map(void) {
    check_map(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    made(&kept, PAGE);
}

int main(int argc, char **argv) {
    long threads = arg(argc, argv, 1, 150), calls = arg(argc, argv, 2, 20);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * KIB);
    for (long i = 0; i < threads; i++) {
        pthread_t id;
        if ((errno = pthread_create(&id, &small, busy, NULL))) die("pthread_create");
    }
    for (long i = 0; i < calls; i++) main_map();
    truth_begin("crowd");
    truth_kind(&kept);
    truth_end();
    _exit(0);
}
