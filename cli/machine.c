#include "machine.h"

#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#ifndef BUILD_COMMIT /* the Makefile asks git */
#define BUILD_COMMIT "unknown"
#define BUILD_NUMBER 0
#endif
const char build_commit[] = BUILD_COMMIT;
const int build_number = BUILD_NUMBER;

/* The value of the first "KEY : VALUE" line of a file in /proc, without its newline. */
static bool proc_value(const char *path, const char *key, char *out, size_t size) {
    char *line = NULL;
    size_t cap = 0;
    bool found = false;
    FILE *f = fopen(path, "r");
    while (f && !found && getline(&line, &cap, f) > 0) {
        size_t n = strlen(key);
        if (strncmp(line, key, n) || !strchr(":\t ", line[n])) continue;
        char *value = strchr(line, ':');
        if (!value) continue;
        value += 1 + strspn(value + 1, " \t");
        snprintf(out, size, "%.*s", (int)strcspn(value, "\n"), value);
        found = true;
    }
    if (f) fclose(f);
    free(line);
    return found;
}

static void keep_known_flags(char *out, size_t size, char *all) {
    static const char *const known[] = {
        "avx2",     "fma",      "f16c",        "avx_vnni",    "avx512f",  "avx512bw",
        "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
        "asimd",    "asimddp",  "asimdhp",     "i8mm",        "sve",      "sve2"};
    size_t at = 0;
    *out = '\0';
    char *rest;
    for (char *word = strtok_r(all, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (!strcmp(word, known[i]) && at + strlen(word) + 2 < size)
                at += (size_t)snprintf(out + at, size - at, "%s%s", at ? " " : "", word);
}

void machine_read(machine *m) {
    static char all[16384];
    memset(m, 0, sizeof *m);
    proc_value("/proc/cpuinfo", "model name", m->cpu, sizeof m->cpu);
    if (proc_value("/proc/cpuinfo", "flags", all, sizeof all) ||
        proc_value("/proc/cpuinfo", "Features", all, sizeof all))
        keep_known_flags(m->flags, sizeof m->flags, all);
    FILE *f = fopen("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "r");
    if (f && fscanf(f, "%31s", m->governor) != 1) m->governor[0] = '\0';
    if (f) fclose(f);
    cpu_set_t set;
    m->processors = sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

/* Whether the processor comes first of those that share its core. */
static bool first_of_core(int cpu) {
    char path[96];
    int first = cpu;
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%d", &first) != 1) first = cpu;
    if (f) fclose(f);
    return first == cpu;
}

bool pin_threads(void) {
    cpu_set_t set;
    int cpus[CPU_SETSIZE], n = 0, k = 0;
    if (sched_getaffinity(0, sizeof set, &set)) return false;
    for (int later = 0; later < 2; later++)
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &set) && first_of_core(cpu) != later) cpus[n++] = cpu;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return false;
    int threads = 0;
    for (struct dirent *d; (d = readdir(tasks));)
        threads += d->d_name[0] != '.';
    rewinddir(tasks);
    bool good = threads <= n;
    for (struct dirent *d; good && k < n && (d = readdir(tasks));) {
        if (d->d_name[0] == '.') continue;
        CPU_ZERO(&set);
        CPU_SET(cpus[k++], &set);
        good = !sched_setaffinity((pid_t)atoi(d->d_name), sizeof set, &set);
    }
    closedir(tasks);
    return good;
}

uint64_t peak_rss_bytes(void) {
    char text[64];
    if (!proc_value("/proc/self/status", "VmHWM", text, sizeof text)) return 0;
    return (uint64_t)strtoull(text, NULL, 10) * 1024; /* "1234 kB" */
}

void die_first(void) {
    FILE *f = fopen("/proc/self/oom_score_adj", "w");
    if (!f) return;
    fputs("1000", f);
    fclose(f);
}
