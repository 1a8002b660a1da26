/* Makes the n-th call of a kind fail, or ends the process before or behind it. Loaded with LD_PRELOAD.

   FAULT=<call>:<n>:<what>   call: rename, link, unlink, write, fsync, mmap, say (a write to the standard error)
                             what: a number of errno, "kill" (before the call is made), "after" (when it is done), or
                             "stop" (SIGSTOP when it is done: whoever waits for that can do something to the files, and
                             let the process go on)
   FAULT_COUNT=<file>        the numbers of calls are written there when the process ends, a line for each kind

   Only writes to ordinary files count as such: not what is said on a terminal or through a pipe. Of maps, only those of
   files. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const NAMES[] = {"rename", "link", "unlink", "write", "fsync", "mmap", "say"};
enum { RENAME, LINK, UNLINK, WRITE, FSYNC, MMAP, SAY, KINDS };
static int counts[KINDS];

enum { DIE = -1, STOP = -2 };

/* Whether this call is to fail: the errno, or 0; or what is to be done behind it. */
static int fault(int kind) {
    int n = __atomic_add_fetch(&counts[kind], 1, __ATOMIC_SEQ_CST);
    const char *wanted = getenv("FAULT");
    char call[16], what[16];
    int at;
    if (!wanted || sscanf(wanted, "%15[^:]:%d:%15s", call, &at, what) != 3) return 0;
    if (strcmp(call, NAMES[kind]) || at != n) return 0;
    if (!strcmp(what, "kill")) kill(getpid(), SIGKILL);
    if (!strcmp(what, "stop")) return STOP;
    return !strcmp(what, "after") ? DIE : atoi(what);
}

static void done(int fault) {
    if (fault == DIE) kill(getpid(), SIGKILL);
    if (fault == STOP) kill(getpid(), SIGSTOP);
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
    if (file != 2 && (fstat(file, &stat) || !S_ISREG(stat.st_mode))) return real(file, data, size);
    int wrong = fault(file == 2 ? SAY : WRITE);
    if (wrong > 0) { errno = wrong; return -1; }
    /* Half of it, so that a file that was killed here is half there. */
    if (wrong == DIE && size > 1) size /= 2;
    ssize_t result = real(file, data, size);
    done(wrong);
    return result;
}

static void *map(const char *name, void *at, size_t size, int protection, int flags, int file, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, name);
    int wrong = file >= 0 ? fault(MMAP) : 0;
    if (wrong > 0) { errno = wrong; return MAP_FAILED; }
    void *result = real(at, size, protection, flags, file, offset);
    done(wrong);
    return result;
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return map("mmap", at, size, protection, flags, file, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return map("mmap64", at, size, protection, flags, file, offset);
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAULT_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    for (int kind = 0; kind < KINDS; kind++) fprintf(file, "%s %d\n", NAMES[kind], counts[kind]);
    fclose(file);
}
