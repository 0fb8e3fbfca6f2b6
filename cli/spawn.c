#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "talk.h"

extern char **environ;

void end_with_parent(void) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
}

static int start(char *const argv[], int to_us, pid_t *child) {
    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (error) return error;
    error = posix_spawn_file_actions_adddup2(&actions, to_us, STDOUT_FILENO);
    if (!error) error = posix_spawn(child, "/proc/self/exe", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

bool run_self(char *const argv[], text_buffer *out, int *status) {
    int ends[2];
    pid_t child;
    if (pipe2(ends, O_CLOEXEC)) {
        complain("cannot make a pipe: %s", strerror(errno));
        return false;
    }
    int error = start(argv, ends[1], &child);
    close(ends[1]);
    bool good = !error;
    if (error) complain("cannot start a process: %s", strerror(error));
    while (good) {
        char piece[4096];
        ssize_t n = interrupted() ? -1 : read(ends[0], piece, sizeof piece);
        if (n == 0) break;
        if (n < 0 && errno == EINTR && !interrupted()) continue;
        if (n < 0 || !text_append(out, piece, (size_t)n)) {
            kill(child, SIGTERM);
            good = false;
        }
    }
    close(ends[0]);
    while (!error && waitpid(child, status, 0) < 0 && errno == EINTR) {
    }
    return good;
}
