/* SPDX-License-Identifier: Apache-2.0 */
/* A program inside that goes for what later verbs on the host obey.
 *
 * meddler make DIR NAME...   every way to put something at DIR/NAME; "NAME ACT ERRNO" a line
 * meddler hold PATH...       opens all, tells, waits for a line, changes all; "PATH ERRNO" a line
 * meddler lock DIR...        locks all, tells, waits for a line
 * meddler pass DIR           what Occlum's users do at /host: "ok", or what failed */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char mine[4096], folder[4096];

static const char *word(long result)
{
	return result >= 0 ? "done" : strerrorname_np(errno);
}

static long make(const char *act, const char *path)
{
	long fd;

	if (!strcmp(act, "stat"))
		return access(path, F_OK);
	if (!strcmp(act, "open"))
		return open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK);
	if (!strcmp(act, "create")) {
		fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_NOFOLLOW, 0666);
		return fd < 0 ? fd : write(fd, "evil", 4);
	}
	if (!strcmp(act, "mkdir"))
		return mkdir(path, 0777);
	if (!strcmp(act, "symlink"))
		return symlink("/etc", path);
	if (!strcmp(act, "mkfifo"))
		return mkfifo(path, 0666);
	if (!strcmp(act, "link"))
		return link(mine, path);
	if (!strcmp(act, "rename"))
		return rename(mine, path);
	if (!strcmp(act, "rename-dir"))
		return rename(folder, path);
	if (!strcmp(act, "exchange"))
		return syscall(SYS_renameat2, AT_FDCWD, mine, AT_FDCWD, path, 2);
	if (!strcmp(act, "take"))
		return rename(path, "taken");
	if (!strcmp(act, "unlink"))
		return unlink(path);
	return rmdir(path);
}

static const char *acts[] = { "stat",   "open",       "create",   "mkdir", "symlink", "mkfifo", "link",
			      "rename", "rename-dir", "exchange", "take",  "unlink",  "rmdir" };

static void wait_for_a_line(const char *told)
{
	char line[16];

	printf("%s\n", told);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		_exit(3);
}

static int pass(void)
{
	char text[8] = "";
	char *map;
	int fd;

	if (mkdir("work", 0755) || (fd = open("work/a", O_CREAT | O_RDWR, 0644)) < 0 ||
	    write(fd, "content", 7) != 7 || rename("work/a", "b") || link("b", "work/c") ||
	    pread(fd, text, 7, 0) != 7 || strcmp(text, "content"))
		return 1;
	map = mmap(0, 7, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return 2;
	map[0] = 'C';
	if (msync(map, 7, MS_SYNC) || munmap(map, 7) || fsync(fd) || ftruncate(fd, 5))
		return 3;
	return chmod("b", 0600) || symlink("b", "work/l") ? 4 : 0;
}

int main(int argc, char **argv)
{
	int fds[32];

	if (!strcmp(argv[1], "make")) {
		if (chdir(argv[2]))
			return 2;
		snprintf(mine, sizeof(mine), "mine");
		snprintf(folder, sizeof(folder), "folder");
		close(open(mine, O_CREAT | O_WRONLY, 0666));
		mkdir(folder, 0777);
		for (int n = 3; n < argc; n++)
			for (unsigned k = 0; k < sizeof(acts) / sizeof(*acts); k++)
				printf("%s %s %s\n", argv[n], acts[k], word(make(acts[k], argv[n])));
		unlink(mine);
		rmdir(folder);
	} else if (!strcmp(argv[1], "hold")) {
		for (int n = 2; n < argc; n++)
			if ((fds[n] = open(argv[n], O_RDWR | O_DIRECTORY)) < 0 && errno == EISDIR)
				fds[n] = open(argv[n], O_RDONLY | O_DIRECTORY);
			else if (fds[n] < 0)
				fds[n] = open(argv[n], O_RDWR);
		wait_for_a_line("open");
		for (int n = 2; n < argc; n++) {
			struct stat st;
			long r = fstat(fds[n], &st);

			if (r == 0 && S_ISDIR(st.st_mode))
				r = openat(fds[n], "planted", O_CREAT | O_WRONLY, 0777);
			else if (r == 0)
				r = pwrite(fds[n], "evil", 4, 0);
			printf("%s %s\n", argv[n], word(r));
		}
	} else if (!strcmp(argv[1], "lock")) {
		for (int n = 2; n < argc; n++)
			if ((fds[n] = open(argv[n], O_RDONLY)) < 0 || flock(fds[n], LOCK_EX | LOCK_NB))
				return 4;
		wait_for_a_line("locked");
	} else {
		int r = chdir(argv[2]) ? 9 : pass();

		if (r)
			printf("%d: %s\n", r, strerror(errno));
		else
			printf("ok\n");
	}
	return 0;
}
