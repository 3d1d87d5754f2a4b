/* SPDX-License-Identifier: Apache-2.0 */
/* Threads whose calls are refused, while one mounts: flooder THREADS HOW MOUNTS.
 *
 * HOW: `words`, each refusal with words of its own; `paths`, each with a process of its own outside.
 * It says how many of its mounts failed, and waits for a line before it ends. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>

static volatile int stop;
static int has_words;

static void *flood(void *number)
{
	char type[48];

	for (long i = 0; !stop; i++) {
		if (has_words) {
			sprintf(type, "type-%ld-%ld", (long)number, i);
			mount("none", "/mnt", type, 0, "");
		} else {
			umount2("/nosuch", 0);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int failed = 0, i;
	pthread_attr_t small;
	pthread_t thread;

	if (argc < 4)
		return 2;
	has_words = !strcmp(argv[2], "words");
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (i = 0; i < atoi(argv[1]); i++)
		if (pthread_create(&thread, &small, flood, (void *)(long)i))
			return 3;
	for (i = 0; i < atoi(argv[3]); i++)
		if (mount("none", "/mnt", "ramfs", 0, NULL) < 0 || umount("/mnt") < 0)
			failed++;
	printf("failed %d\n", failed);
	fflush(stdout);
	getchar();
	stop = 1;
	return 0;
}
