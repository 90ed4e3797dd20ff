// A program for job control: says what signals reach it, and where it stands.
//
//   jobs
//
// Prints "ready foreground=yes|no leader=yes|no" (whether its process group has the terminal, and
// whether it leads that group), then a line for each SIGINT ("got INT"), SIGCONT ("got CONT"),
// SIGWINCH ("got WINCH") and SIGHUP, and for each line that it reads ("read LINE"). SIGTSTP keeps its default action.
// Ends with status 7 at SIGTERM or the line "end", with 8 at the end of input. Maps a page at each.
#include "truth.h"
#include <poll.h>
#include <signal.h>

static int ends[2];

static void on_signal(int number) {
    int saved = errno;
    unsigned char c = (unsigned char)number;
    if (write(ends[1], &c, 1) != 1) _exit(99);
    errno = saved;
}

static void say(const char *what, const char *more) {
    void *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    touch(check_map(p, "mmap"), PAGE);
    dprintf(1, "%s%s\n", what, more);
}

int main(void) {
    static const int numbers[] = {SIGINT, SIGCONT, SIGWINCH, SIGTERM, SIGHUP};
    static const char *names[] = {"INT", "CONT", "WINCH", "TERM", "HUP"};
    check(pipe(ends), "pipe");
    for (int i = 0; i < 5; i++) {
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        check(sigaction(numbers[i], &action, NULL), "sigaction");
    }
    char text[256];
    snprintf(text, sizeof text, "foreground=%s leader=%s", isatty(0) && tcgetpgrp(0) == getpgrp() ? "yes" : "no",
             getpgrp() == getpid() ? "yes" : "no");
    say("ready ", text);
    for (;;) {
        struct pollfd fds[2] = {{.fd = 0, .events = POLLIN}, {.fd = ends[0], .events = POLLIN}};
        if (poll(fds, 2, -1) < 0) {
            if (errno == EINTR) continue;
            die("poll");
        }
        if (fds[1].revents) {
            unsigned char c;
            if (read(ends[0], &c, 1) != 1) die("read");
            for (int i = 0; i < 5; i++)
                if (c == numbers[i]) say("got ", names[i]);
            if (c == SIGTERM) return 7;
        } else if (fds[0].revents) {
            ssize_t n = read(0, text, sizeof text - 1);
            if (n <= 0) return 8;
            text[n] = 0;
            text[strcspn(text, "\n")] = 0;
            say("read ", text);
            if (!strcmp(text, "end")) return 7;
        }
    }
}
