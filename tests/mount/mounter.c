/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the calls that its arguments name, one after the other, and prints what each returned:
 *
 *   mount SOURCE TARGET TYPE FLAGS OPTIONS     NULL, BAD, KERNEL, MIDDLE, CLOSED, CUT: pointers
 *   umount TARGET FLAGS
 *   open PATH (as descriptor 9)    foreign PATH (the same, in another mount namespace)
 *      map PATH TEXT    pause    opath PATH (as descriptor 9)    syncfs PATH    syncfd NUMBER
 *      apart (from here on in a mount namespace of its own)    wait (for a line)
 *   own PATH UID    as UID (and gid, for good)    euid UID    fsuid UID    inner (root of a user namespace of its own)
 *   faked PATH (the program of a process of such a namespace is PATH from here on, prctl(2))
 *   write PATH TEXT    read PATH    cd PATH    mkdir PATH    rmdir PATH    sync    big N (options of N bytes)
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *pointer(char *word)
{
	if (!strcmp(word, "NULL"))
		return NULL;
	if (!strcmp(word, "BAD"))
		return (char *)0x10;
	if (!strcmp(word, "KERNEL"))
		return (char *)0xffff888000000000ul;
	if (!strcmp(word, "MIDDLE"))
		return (char *)0x8000000000000001ul;
	if (!strcmp(word, "CLOSED") || !strcmp(word, "CUT")) {
		char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memset(pages, '/', 4096);
		strcpy(pages + 4096, "mnt");
		mprotect(pages + 4096, 4096, PROT_NONE);
		return pages + (word[1] == 'L' ? 4096 : 4090);
	}
	if (!strncmp(word, "long:", 5)) {
		size_t n = strtoul(word + 5, NULL, 0);
		char *text = malloc(n + 1);

		memset(text, 'x', n);
		text[0] = '/';
		text[n] = 0;
		return text;
	}
	return word;
}

static int open_elsewhere(const char *path)
{
	char where[64];
	int made[2], fd;
	pid_t child;

	if (pipe(made) < 0 || (child = fork()) < 0)
		return -1;
	if (!child) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
			_exit(1);
		write(made[1], "", 1);
		pause();
	}
	close(made[1]);
	if (read(made[0], where, 1) != 1)
		return -1;
	snprintf(where, sizeof(where), "/proc/%d/root%s", child, path);
	fd = open(where, O_RDONLY | O_DIRECTORY);
	kill(child, SIGKILL);
	return fd;
}

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), r = fd < 0 ? -1 : (int)write(fd, text, strlen(text));

	if (fd >= 0)
		close(fd);
	return r < 0 ? -1 : 0;
}

static int become_inner_root(void)
{
	char line[64];

	snprintf(line, sizeof(line), "0 %d 1", (int)geteuid());
	/* Who has changed its user does not own its /proc files any more, proc(5). */
	if (unshare(CLONE_NEWUSER) < 0 || prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		return -1;
	put("/proc/self/setgroups", "deny"); /* where setgroups(2) is denied already, it cannot be written */
	return put("/proc/self/uid_map", line);
}

/* The link can be changed once nothing of the old program is mapped: copies take its place. */
static int leave_own_file(void)
{
	struct {
		unsigned long from, to;
		int protection;
	} found[32];
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[4096], rights[5];
	int n = 0;

	while (maps && n < 32 && fgets(line, sizeof(line), maps)) {
		sscanf(line, "%lx-%lx %4s", &found[n].from, &found[n].to, rights);
		found[n].protection = (rights[0] == 'r' ? PROT_READ : 0) |
				      (rights[1] == 'w' ? PROT_WRITE : 0) |
				      (rights[2] == 'x' ? PROT_EXEC : 0);
		n += strstr(line, "/mounter") != NULL;
	}
	if (!maps)
		return -1;
	fclose(maps);
	while (n--) {
		size_t size = found[n].to - found[n].from;
		void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memcpy(copy, (void *)found[n].from, size);
		mprotect(copy, size, found[n].protection);
		if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)found[n].from) ==
		    MAP_FAILED)
			return -1;
	}
	return 0;
}

/* PR_SET_MM_MAP with exe_fd needs no privilege but that of the own user namespace. All other
 * members must be the addresses as they are, which proc_pid_stat(5) tells. */
static int fake_program(const char *path)
{
	unsigned long long f[52];
	struct prctl_mm_map map;
	FILE *stat = fopen("/proc/self/stat", "r");
	char text[4096], *at;
	int n = 0;

	if (!stat || !fgets(text, sizeof(text), stat) || !(at = strrchr(text, ')')))
		return -1;
	fclose(stat);
	for (at += 4, n = 4; n < 53; n++)
		f[n - 1] = strtoull(at, &at, 10);
	memset(&map, 0, sizeof(map));
	map.start_code = f[25];
	map.end_code = f[26];
	map.start_stack = f[27];
	map.start_data = f[44];
	map.end_data = f[45];
	map.start_brk = f[46];
	map.brk = (unsigned long)sbrk(0);
	map.arg_start = f[47];
	map.arg_end = f[48];
	map.env_start = f[49];
	map.env_end = f[50];
	map.exe_fd = (unsigned)open(path, O_RDONLY);
	if (leave_own_file() < 0)
		return -1;
	return prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof(map), 0);
}

static void told(const char *what, long r)
{
	if (r < 0)
		printf("%s %s\n", what, strerrorname_np(errno));
	else
		printf("%s ok\n", what);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int i = 1;

	while (i < argc) {
		const char *op = argv[i++];

		if (!strcmp(op, "mount")) {
			told(op, syscall(SYS_mount, pointer(argv[i]), pointer(argv[i + 1]),
					 pointer(argv[i + 2]), strtoul(argv[i + 3], NULL, 0),
					 pointer(argv[i + 4])));
			i += 5;
		} else if (!strcmp(op, "umount")) {
			told(op, syscall(SYS_umount2, pointer(argv[i]), strtol(argv[i + 1], NULL, 0)));
			i += 2;
		} else if (!strcmp(op, "write")) {
			int fd = open(argv[i], O_WRONLY | O_CREAT | O_TRUNC, 0644);
			long r = fd < 0 ? -1 : write(fd, argv[i + 1], strlen(argv[i + 1]));

			if (fd >= 0 && close(fd) < 0)
				r = -1;
			told(op, r);
			i += 2;
		} else if (!strcmp(op, "read")) {
			char text[4096];
			int fd = open(argv[i++], O_RDONLY);
			long n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

			if (n < 0) {
				told(op, n);
			} else {
				text[n] = 0;
				printf("read %s\n", text);
			}
			if (fd >= 0)
				close(fd);
		} else if (!strcmp(op, "map")) {
			/* Into a mapping that stays, and no further. */
			int fd = open(argv[i], O_RDWR | O_CREAT | O_TRUNC, 0644);
			size_t n = strlen(argv[i + 1]);
			char *at;

			if (fd < 0 || ftruncate(fd, (off_t)n) < 0 || fsync(fd) < 0)
				at = MAP_FAILED;
			else
				at = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			if (at != MAP_FAILED)
				memcpy(at, argv[i + 1], n);
			told(op, at == MAP_FAILED ? -1 : 0);
			i += 2;
		} else if (!strcmp(op, "sync")) {
			sync();
			told(op, 0);
		} else if (!strcmp(op, "wait")) {
			getchar();
		} else if (!strcmp(op, "apart")) {
			told(op, unshare(CLONE_NEWUSER | CLONE_NEWNS));
		} else if (!strcmp(op, "syncfs")) {
			told(op, syncfs(open(argv[i++], O_RDONLY)));
		} else if (!strcmp(op, "syncfd")) {
			told(op, syncfs(atoi(argv[i++])));
		} else if (!strcmp(op, "opath")) {
			told(op, dup2(open(argv[i++], O_PATH), 9));
		} else if (!strcmp(op, "pause")) {
			pause();
		} else if (!strcmp(op, "open")) {
			told(op, dup2(open(argv[i++], O_RDONLY), 9));
		} else if (!strcmp(op, "foreign")) {
			/* As descriptor 9, in a mount namespace that somebody else made. */
			told(op, dup2(open_elsewhere(argv[i++]), 9));
		} else if (!strcmp(op, "as")) {
			unsigned id = (unsigned)atoi(argv[i++]);

			told(op, setresgid(id, id, id) < 0 ? -1 : setresuid(id, id, id));
		} else if (!strcmp(op, "own")) {
			unsigned id = (unsigned)atoi(argv[i + 1]);

			told(op, chown(argv[i], id, id));
			i += 2;
		} else if (!strcmp(op, "euid")) {
			told(op, seteuid((uid_t)atoi(argv[i++])));
		} else if (!strcmp(op, "fsuid")) {
			setfsuid((uid_t)atoi(argv[i++]));
			told(op, 0);
		} else if (!strcmp(op, "inner")) {
			told(op, become_inner_root());
		} else if (!strcmp(op, "faked")) {
			told(op, fake_program(argv[i++]));
		} else if (!strcmp(op, "cd")) {
			told(op, chdir(argv[i++]));
		} else if (!strcmp(op, "rmdir")) {
			told(op, rmdir(argv[i++]));
		} else if (!strcmp(op, "mkdir")) {
			told(op, mkdir(argv[i++], 0755));
		} else if (!strcmp(op, "link")) {
			told(op, symlink(argv[i], argv[i + 1]));
			i += 2;
		} else if (!strcmp(op, "chroot")) {
			told(op, chroot(argv[i++]));
		} else {
			printf("unknown word %s\n", op);
			return 2;
		}
	}
	return 0;
}
