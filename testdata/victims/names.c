// Threads that name themselves.
//
//   names [THREADS=3]
//
// The process names itself with 15 bytes that end in the middle of a character; each thread names
// itself "decoder-N" after its first mapping.
//   named_map    mmap of 2 pages, twice in each thread; kept
// maptrail must say: 4 pages held by each "decoder-N".
#include "truth.h"
#include <pthread.h>
#include <sys/prctl.h>

static struct kind named = {.name = "named_map"};

FRAME void named_map(void) {
    check_map(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
    made(&named, 2 * PAGE);
}

static void *run(void *number) {
    char name[16];
    named_map();
    snprintf(name, sizeof name, "decoder-%ld", (long)number);
    check(prctl(PR_SET_NAME, name, 0, 0, 0), "PR_SET_NAME");
    named_map();
    return NULL;
}

int main(int argc, char **argv) {
    long threads = arg(argc, argv, 1, 3);
    // Seven and a half letters of two bytes.
    check(prctl(PR_SET_NAME, "\xd0\xbf\xd0\xb0\xd0\xbc\xd1\x8f\xd1\x82\xd1\x8c\xd0\xbf\xd0", 0, 0, 0), "PR_SET_NAME");
    for (long i = 0; i < threads; i++) {
        pthread_t id;
        if ((errno = pthread_create(&id, NULL, run, (void *)i))) die("pthread_create");
        if ((errno = pthread_join(id, NULL))) die("pthread_join");
    }
    truth_begin("names");
    truth_kind(&named);
    truth_end();
    return 0;
}
