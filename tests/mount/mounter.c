/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the calls that its arguments name, one after the other, and prints what each returned:
 *
 *   mount SOURCE TARGET TYPE FLAGS OPTIONS     NULL, BAD, KERNEL, MIDDLE, CLOSED, CUT: pointers
 *   umount TARGET FLAGS
 *   open PATH (as descriptor 9)    foreign PATH (the same, in another mount namespace)
 *      map PATH TEXT    pause    opath PATH (as descriptor 9)    syncfs PATH    syncfd NUMBER
 *      apart (from here on in a mount namespace of its own)    wait (for a line)
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
