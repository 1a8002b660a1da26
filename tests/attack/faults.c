/* Makes the n-th call of a kind fail, or ends the process before or behind it. Loaded with LD_PRELOAD.

   FAULT=<call>:<n>:<what>   call: rename, link, unlink, write, fsync; what: a number of errno, "kill" (before the call is
                             made), or "after" (when it is done)
   FAULT_COUNT=<file>        the numbers of calls are written there when the process ends, a line for each kind

   Only writes to ordinary files count: not what is said on a terminal or through a pipe. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const NAMES[] = {"rename", "link", "unlink", "write", "fsync"};
enum { RENAME, LINK, UNLINK, WRITE, FSYNC, KINDS };
static int counts[KINDS];

/* Whether this call is to fail: the errno, or 0. -1: die behind it. */
static int fault(int kind) {
    int n = __atomic_add_fetch(&counts[kind], 1, __ATOMIC_SEQ_CST);
    const char *wanted = getenv("FAULT");
    char call[16], what[16];
    int at;
    if (!wanted || sscanf(wanted, "%15[^:]:%d:%15s", call, &at, what) != 3) return 0;
    if (strcmp(call, NAMES[kind]) || at != n) return 0;
    if (!strcmp(what, "kill")) kill(getpid(), SIGKILL);
    return !strcmp(what, "after") ? -1 : atoi(what);
}

static void done(int fault) {
    if (fault == -1) kill(getpid(), SIGKILL);
}

#define REAL(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

int rename(const char *from, const char *to) {
    int wrong = fault(RENAME);
    if (wrong > 0) { errno = wrong; return -1; }
    int result = REAL("rename", const char *, const char *)(from, to);
    done(wrong);
    return result;
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    int wrong = fault(LINK);
    if (wrong > 0) { errno = wrong; return -1; }
    int result = REAL("linkat", int, const char *, int, const char *, int)(a, from, b, to, flags);
    done(wrong);
    return result;
}

int unlink(const char *path) {
    int wrong = fault(UNLINK);
    if (wrong > 0) { errno = wrong; return -1; }
    int result = REAL("unlink", const char *)(path);
    done(wrong);
    return result;
}

int fsync(int file) {
    int wrong = fault(FSYNC);
    if (wrong > 0) { errno = wrong; return -1; }
    int result = REAL("fsync", int)(file);
    done(wrong);
    return result;
}

ssize_t write(int file, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    struct stat stat;
    if (fstat(file, &stat) || !S_ISREG(stat.st_mode)) return real(file, data, size);
    int wrong = fault(WRITE);
    if (wrong > 0) { errno = wrong; return -1; }
    /* Half of it, so that a file that was killed here is half there. */
    if (wrong == -1 && size > 1) size /= 2;
    ssize_t result = real(file, data, size);
    done(wrong);
    return result;
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAULT_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (int kind = 0; kind < KINDS; kind++) fprintf(file, "%s %d\n", NAMES[kind], counts[kind]);
    fclose(file);
}
