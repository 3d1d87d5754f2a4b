/* SPDX-License-Identifier: Apache-2.0
 * Writes everything that a program inside can read of other processes and of its own tree to
 * standard output, for the test to search: what stands in /proc, the files that are open, memory
 * where that is allowed, and every regular file. Says on standard error what it could attach to.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[1 << 16];

static void copy(const char *path)
{
    struct stat status;
    ssize_t got;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        return;
    /* Files of /proc have size 0 and are regular all the same; pipes and sockets are not read. */
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
        while ((got = read(fd, buffer, sizeof buffer)) > 0)
            if (fwrite(buffer, 1, got, stdout) != (size_t)got)
                exit(2);
    close(fd);
}

static int visit(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
    (void)walk;
    if (kind == FTW_D && (!strcmp(path, "/proc") || !strcmp(path, "/sys")))
        return FTW_SKIP_SUBTREE;
    if (kind == FTW_F && S_ISREG(status->st_mode))
        copy(path);
    return FTW_CONTINUE;
}

static void memory(const char *pid)
{
    char path[64], line[512], permissions[5];
    unsigned long start, end;
    FILE *maps;
    int fd;

    snprintf(path, sizeof path, "/proc/%s/mem", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    snprintf(path, sizeof path, "/proc/%s/maps", pid);
    maps = fopen(path, "re");
    while (maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %4s", &start, &end, permissions) != 3 || permissions[0] != 'r')
            continue;
        for (; start < end; start += sizeof buffer) {
            ssize_t got = pread(fd, buffer, sizeof buffer, start);
            if (got <= 0)
                break;
            fwrite(buffer, 1, got, stdout);
        }
    }
    if (maps)
        fclose(maps);
    close(fd);
}

static void process(const char *pid)
{
    static const char *const files[] = {"environ", "cmdline", "comm",      "maps",
                                        "status",  "auxv",    "mountinfo", "cgroup"};
    char path[512];
    struct dirent *entry;
    DIR *directory;

    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "/proc/%s/%s", pid, files[i]);
        copy(path);
    }
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    directory = opendir(path);
    while (directory && (entry = readdir(directory))) {
        snprintf(path, sizeof path, "/proc/%s/fd/%s", pid, entry->d_name);
        copy(path);
    }
    if (directory)
        closedir(directory);
    if (atoi(pid) == getpid())
        return;
    memory(pid);
    if (ptrace(PTRACE_ATTACH, atoi(pid), 0, 0) == 0) {
        fprintf(stderr, "attached to %s\n", pid);
        waitpid(atoi(pid), NULL, __WALL);
        ptrace(PTRACE_DETACH, atoi(pid), 0, 0);
    }
}

int main(void)
{
    struct dirent *entry;
    DIR *directory = opendir("/proc");

    while (directory && (entry = readdir(directory)))
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
            process(entry->d_name);
    nftw("/", visit, 20, FTW_PHYS | FTW_ACTIONRETVAL);
    fflush(stdout);
    return 0;
}
