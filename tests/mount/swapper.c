/* SPDX-License-Identifier: Apache-2.0 */
/* swapper ROUNDS DIR: one process exchanges /host/share and /host/way all the time, the other mounts
 * DIR of the host at /mnt. Prints how often that was done and refused, the exchanges, and how often
 * /mnt/secret could be seen. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

int main(int argc, char **argv)
{
	int rounds = atoi(argv[1]), mounted = 0, refused = 0, led = 0, before;
	volatile int *swaps = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char options[256];
	struct stat status;
	pid_t child;

	(void)argc;
	snprintf(options, sizeof(options), "dir=%s", argv[2]);
	child = fork();
	if (!child)
		for (;;) {
			if (renameat2(AT_FDCWD, "/host/share", AT_FDCWD, "/host/way", RENAME_EXCHANGE)) {
				perror("renameat2");
				_exit(1);
			}
			++*swaps;
		}
	for (int i = 0; i < rounds; i++) {
		/* Some of them in the middle of many exchanges, some right after one. */
		for (before = *swaps; *swaps - before < i % 3;)
			usleep(50);
		if (mount("x", "/mnt", "hostfs", 0, options)) {
			refused++;
			continue;
		}
		mounted++;
		if (!stat("/mnt/secret", &status))
			led++;
		if (umount("/mnt")) {
			perror("umount");
			return 1;
		}
	}
	kill(child, SIGKILL);
	printf("%d %d %d %d\n", mounted, refused, *swaps, led);
	return 0;
}
