#include "talk.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "flags.h"

static bool quiet;
static bool progress_shown;
static int stdout_errno;

/* ---- stderr ------------------------------------------------------------------------------- */

static void escape(FILE *out, const char *text) {
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '\n')
            fputs("\\n", out);
        else if (*p == '\t')
            fputs("\\t", out);
        else if (*p < 0x20 || *p == 0x7f)
            fprintf(out, "\\x%02x", *p);
        else
            fputc(*p, out);
    }
}

void print_escaped(const char *text) {
    escape(stdout, text);
}

void human_bytes(char *out, size_t size, uint64_t bytes) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    double v = (double)bytes;
    int unit = 0;
    for (; v >= 1000 && unit < 4; unit++)
        v /= 1000;
    snprintf(out, size, "%.*f %s", unit ? 1 : 0, v, units[unit]);
}

static void clear_progress(void) {
    if (progress_shown) fputs("\r\033[K", stderr);
    progress_shown = false;
}

static void speak(const char *format, va_list args) {
    char text[2048];
    vsnprintf(text, sizeof text, format, args);
    fflush(stdout); /* keep the order when both streams share a terminal */
    clear_progress();
    fputs("linnet: ", stderr);
    escape(stderr, text);
    fputc('\n', stderr);
}

void say(const char *format, ...) {
    if (quiet) return;
    va_list args;
    va_start(args, format);
    speak(format, args);
    va_end(args);
}

void complain(const char *format, ...) {
    va_list args;
    va_start(args, format);
    speak(format, args);
    va_end(args);
}

int failed(const char *format, ...) {
    va_list args;
    va_start(args, format);
    speak(format, args);
    va_end(args);
    return EXIT_FAILED;
}

int failed_with(const linnet_error *err) {
    if (err->code != LINNET_ERR_CANCELLED) return failed("%s", err->text);
    clear_progress(); /* a callback of ours stopped it: a signal, or a failure already told */
    return interrupt_code();
}

void be_quiet(bool is_quiet) {
    quiet = is_quiet;
}

bool on_terminal(void) {
    return isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
}

bool show_progress(void *user, const char *what, size_t done, size_t total) {
    static double last, first;
    static size_t before;
    if (interrupted()) return false;
    if (user || quiet || !total || !isatty(STDERR_FILENO)) return true;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double now = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    if (!first || done < before) first = now; /* other work than last time */
    before = done;
    if (done >= total) {
        clear_progress();
        first = 0;
    } else if (now - first > 0.5 && now - last > 0.1) { /* short work stays silent */
        fprintf(stderr, "\r%s: %d %%\033[K", what, (int)(100.0 * (double)done / (double)total));
        fflush(stderr);
        progress_shown = true;
        last = now;
    }
    return true;
}

/* ---- stdout ------------------------------------------------------------------------------- */

bool put(const char *bytes, size_t n) {
    if (stdout_errno) return false;
    errno = 0;
    if (fwrite(bytes, 1, n, stdout) != n) stdout_errno = errno ? errno : EIO;
    return !stdout_errno;
}

bool put_now(const char *bytes, size_t n) {
    if (!put(bytes, n)) return false;
    if (fflush(stdout)) stdout_errno = errno ? errno : EIO;
    return !stdout_errno;
}

bool stdout_alive(void) {
    if (!stdout_errno && ferror(stdout)) stdout_errno = errno ? errno : EIO;
    return !stdout_errno;
}

int finish_stdout(void) {
    errno = 0;
    if (!stdout_errno && (fflush(stdout) || ferror(stdout))) stdout_errno = errno ? errno : EIO;
    if (!stdout_errno) return EXIT_WORKED;
    int code = stdout_errno;
    stdout_errno = 0;
    return failed("cannot write to standard output: %s", strerror(code));
}

/* ---- signals ------------------------------------------------------------------------------ */

static volatile sig_atomic_t interrupt_signal;
enum { CRASH_PATHS = 4 };
static const char *volatile crash_paths[CRASH_PATHS];

static void on_bus_error(int signal_number) {
    static const char text[] = "linnet: the model file changed while it was mapped\n";
    (void)signal_number;
    for (int i = 0; i < CRASH_PATHS; i++)
        if (crash_paths[i]) unlink(crash_paths[i]);
    if (write(STDERR_FILENO, text, sizeof text - 1)) {
    } /* nothing to do if that fails */
    _exit(EXIT_FAILED);
}

void prepare_process(void) {
    /* A closed standard stream would be handed to the next file opened, and text for stdout would
     * land in it. Fill the gap with something that refuses, so that use of it is an error. */
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
            (void)!open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_WRONLY);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOFBF, 1 << 16); /* whoever streams flushes */
    struct sigaction on_bus = {.sa_handler = on_bus_error};
    sigaction(SIGBUS, &on_bus, NULL);
}

static void replace_crash_path(const char *from, const char *to) {
    for (int i = 0; i < CRASH_PATHS; i++)
        if (crash_paths[i] == from) {
            crash_paths[i] = to;
            return;
        }
}

void remove_on_crash(const char *path) {
    replace_crash_path(NULL, path);
}

void keep_on_crash(const char *path) {
    replace_crash_path(path, NULL);
}

static void on_interrupt(int signal_number) {
    interrupt_signal = signal_number;
}

void catch_interrupts(bool again) {
    struct sigaction action = {.sa_handler = on_interrupt, /* no SA_RESTART: reads must return */
                               .sa_flags = again ? 0 : (int)SA_RESETHAND};
    struct sigaction old;
    sigaction(SIGINT, &action, NULL);
    action.sa_flags = (int)SA_RESETHAND;
    sigaction(SIGTERM, &action, NULL);
    if (!sigaction(SIGHUP, NULL, &old) && old.sa_handler != SIG_IGN) /* nohup stays nohup */
        sigaction(SIGHUP, &action, NULL);
}

bool interrupted(void) {
    return interrupt_signal != 0;
}

void clear_interrupt(void) {
    interrupt_signal = 0;
}

int interrupt_code(void) {
    return interrupt_signal ? 128 + interrupt_signal : EXIT_FAILED;
}
