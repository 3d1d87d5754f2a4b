/* SPDX-License-Identifier: Apache-2.0
 *
 * racer A B [COUNT]: exchanges two names in one step, again and again, until it is ended or has done
 * it COUNT times; what is missing at the moment is waited for. Prints "ready", and how often it did it
 * on SIGTERM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile sig_atomic_t ended;

static void end(int number)
{
	(void)number;
	ended = 1;
}

int main(int argc, char **argv)
{
	unsigned long done = 0, most = argc > 3 ? strtoul(argv[3], NULL, 10) : -1UL;

	signal(SIGTERM, end);
	if (argc < 3)
		return 2;
	puts("ready");
	fflush(stdout);
	while (!ended && done < most)
		if (syscall(SYS_renameat2, AT_FDCWD, argv[1], AT_FDCWD, argv[2], 2) == 0)
			done++;
	/* An even number leaves the real thing at its name. */
	while (done % 2 && syscall(SYS_renameat2, AT_FDCWD, argv[1], AT_FDCWD, argv[2], 2) == 0)
		done++;
	printf("%lu\n", done);
	return 0;
}
