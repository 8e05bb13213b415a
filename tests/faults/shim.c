/* Records the file operations below one folder, and makes a chosen one fail. Loaded with LD_PRELOAD by recorder.py.

   M3_ROOT: the folder, absolute. M3_TRACE: file of the records; none if unset.
   A record is a line "operation handle offset length flags path\n" and then `length` bytes of data. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define HANDLES 4096
#define REAL(name) ((__typeof__(&name))real(#name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *paths[HANDLES];
static const char *root;
static int trace = -1;
static long calls, armed;
static int error, persistent, writes_only, failed;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void start(void) {
    root = getenv("M3_ROOT");
    const char *file = getenv("M3_TRACE");
    if (file) trace = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* The nth call from now on fails with this error; persistent: so do all later ones. */
void m3_arm(long n, int number, int stays, int only_writes) {
    calls = failed = 0; armed = n; error = number; persistent = stays; writes_only = only_writes;
}
long m3_calls(void) { return calls; }
int m3_failed(void) { return failed; }

static int below(const char *path) {
    return root && path && !strncmp(path, root, strlen(root)) && (path[strlen(root)] == '/' || !path[strlen(root)]);
}

static const char *held(int handle) { return handle >= 0 && handle < HANDLES ? paths[handle] : NULL; }

static void record(const char *operation, int handle, long offset, long length, int flags, const char *path,
                   const void *data) {
    if (trace < 0) return;
    char line[2 * PATH_MAX + 128];
    int size = snprintf(line, sizeof line, "%s %d %ld %ld %d %s\n", operation, handle, offset, data ? length : 0, flags, path);
    int before = errno;
    pthread_mutex_lock(&lock);
    syscall(SYS_write, trace, line, (size_t)size);
    for (long done = 0; data && done < length;) {
        long part = syscall(SYS_write, trace, (const char *)data + done, (size_t)(length - done));
        if (part <= 0) abort();
        done += part;
    }
    pthread_mutex_unlock(&lock);
    errno = before;
}

void m3_mark(const char *text) { record("mark", -1, 0, 0, 0, text, NULL); }

/* Whether this call is to fail. */
static int fails(const char *path, int is_write) {
    if (!path || (writes_only && !is_write)) return 0;
    calls++;
    if (!armed || calls < armed || (calls > armed && !persistent)) return 0;
    failed = 1;
    errno = error;
    return 1;
}

static int opened(int handle, const char *path, int flags) {
    if (handle >= 0 && handle < HANDLES && below(path)) {
        paths[handle] = strdup(path);
        record("open", handle, 0, 0, flags, path, NULL);
    }
    return handle;
}

#define OPEN(name)                                                                                       \
    int name(const char *path, int flags, ...) {                                                         \
        va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;     \
        va_end(rest);                                                                                    \
        if (below(path) && fails(path, (flags & O_CREAT) != 0)) return -1;                               \
        return opened(REAL(name)(path, flags, mode), path, flags);                                       \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                                     \
    int name(int folder, const char *path, int flags, ...) {                                             \
        va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;     \
        va_end(rest);                                                                                    \
        if (below(path) && fails(path, (flags & O_CREAT) != 0)) return -1;                               \
        return opened(REAL(name)(folder, path, flags, mode), path, flags);                               \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int handle) {
    if (held(handle)) {
        record("close", handle, 0, 0, 0, paths[handle], NULL);
        free(paths[handle]);
        paths[handle] = NULL;
    }
    return REAL(close)(handle);
}

static ssize_t written(int handle, long offset, ssize_t length, const void *data) {
    if (held(handle) && length > 0) record("write", handle, offset, length, 0, paths[handle], data);
    return length;
}

ssize_t write(int handle, const void *data, size_t length) {
    if (!held(handle)) return REAL(write)(handle, data, length);
    if (fails(paths[handle], 1)) return -1;
    ssize_t done = REAL(write)(handle, data, length);
    return done < 0 ? done : written(handle, lseek(handle, 0, SEEK_CUR) - done, done, data);
}

#define PWRITE(name, type)                                                                               \
    ssize_t name(int handle, const void *data, size_t length, type offset) {                             \
        if (held(handle) && fails(paths[handle], 1)) return -1;                                          \
        return written(handle, offset, REAL(name)(handle, data, length, offset), data);                  \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

/* Nothing here writes in these ways; if something begins to, the trace says so. */
#define UNEXPECTED(handle) if (held(handle)) record("unexpected", handle, 0, 0, 0, paths[handle], NULL)
ssize_t writev(int handle, const struct iovec *parts, int count) { UNEXPECTED(handle); return REAL(writev)(handle, parts, count); }
ssize_t pwritev(int handle, const struct iovec *parts, int count, off_t offset) { UNEXPECTED(handle); return REAL(pwritev)(handle, parts, count, offset); }
int fallocate(int handle, int mode, off_t offset, off_t length) { UNEXPECTED(handle); return REAL(fallocate)(handle, mode, offset, length); }
int posix_fallocate(int handle, off_t offset, off_t length) { UNEXPECTED(handle); return REAL(posix_fallocate)(handle, offset, length); }

#define READ(name, ...)                                                                                  \
    ssize_t name(int handle, void *data, size_t length __VA_OPT__(,) __VA_ARGS__)
READ(read) { return held(handle) && fails(paths[handle], 0) ? -1 : REAL(read)(handle, data, length); }
READ(pread, off_t at) { return held(handle) && fails(paths[handle], 0) ? -1 : REAL(pread)(handle, data, length, at); }
READ(pread64, off64_t at) { return held(handle) && fails(paths[handle], 0) ? -1 : REAL(pread64)(handle, data, length, at); }

#define SIZED(name, type)                                                                                \
    int name(int handle, type length) {                                                                  \
        if (held(handle) && fails(paths[handle], 1)) return -1;                                          \
        int result = REAL(name)(handle, length);                                                         \
        if (!result && held(handle)) record("truncate", handle, length, 0, 0, paths[handle], NULL);      \
        return result;                                                                                   \
    }
SIZED(ftruncate, off_t)
SIZED(ftruncate64, off64_t)

#define SYNC(name)                                                                                       \
    int name(int handle) {                                                                               \
        if (held(handle) && fails(paths[handle], 1)) return -1;                                          \
        int result = REAL(name)(handle);                                                                 \
        if (!result && held(handle)) record("sync", handle, 0, 0, 0, paths[handle], NULL);               \
        return result;                                                                                   \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    if (below(from) && fails(from, 1)) return -1;
    int result = REAL(rename)(from, to);
    if (!result && below(from)) record("rename", -1, 0, strlen(to), 0, from, to);
    return result;
}
int unlink(const char *path) {
    if (below(path) && fails(path, 1)) return -1;
    int result = REAL(unlink)(path);
    if (!result && below(path)) record("unlink", -1, 0, 0, 0, path, NULL);
    return result;
}
int rmdir(const char *path) {
    int result = REAL(rmdir)(path);
    if (!result && below(path)) record("unlink", -1, 0, 0, 0, path, NULL);
    return result;
}
int mkdir(const char *path, mode_t mode) {
    if (below(path) && fails(path, 1)) return -1;
    int result = REAL(mkdir)(path, mode);
    if (!result && below(path)) record("mkdir", -1, 0, 0, 0, path, NULL);
    return result;
}
DIR *opendir(const char *path) {
    if (below(path) && fails(path, 0)) return NULL;
    return REAL(opendir)(path);
}
#define STATUS(name, kind)                                                                               \
    int name(const char *path, struct kind *found) {                                                     \
        return below(path) && fails(path, 0) ? -1 : REAL(name)(path, found);                             \
    }
STATUS(stat, stat)
STATUS(lstat, stat)
STATUS(stat64, stat64)
STATUS(lstat64, stat64)
