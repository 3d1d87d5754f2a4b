/* SPDX-License-Identifier: Apache-2.0 */
/* Programs that make it hard to mount the right thing in the right place: racer MODE ROUNDS. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 8

static volatile int stop;
static volatile long alarms;
static int rounds;
static char options[64];

static void ring(int signal)
{
	(void)signal;
	alarms++;
}

/* How many lines of the mount table have this mount point; all ramfs ones for NULL. */
static int count(const char *target)
{
	char line[1024], where[512], type[64];
	FILE *table = fopen("/proc/mounts", "r");
	int n = 0;

	while (table && fgets(line, sizeof(line), table))
		if (sscanf(line, "%*s %511s %63s", where, type) == 2 &&
		    (target ? !strcmp(where, target) : !strncmp(line, "ramfs ", 6)))
			n++;
	if (table)
		fclose(table);
	return n;
}

static int storm(void)
{
	struct itimerval timer = {{0, 1000}, {0, 1000}};
	/* As the runtime of Go does it. Without SA_RESTART a call that the supervisor has not received
	 * yet ends with EINTR, as any slow call would. */
	struct sigaction action = {.sa_handler = ring, .sa_flags = SA_RESTART};
	int wrong = 0;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 0; i < rounds; i++) {
		if (mount("none", "/mnt", "ramfs", 0, NULL) < 0)
			wrong++;
		if (i % 10 == 9) {
			if (count("/mnt") != 10)
				wrong++;
			for (int j = 0; j < 10; j++)
				if (umount("/mnt") < 0)
					wrong++;
		}
	}
	timer = (struct itimerval){0};
	setitimer(ITIMER_REAL, &timer, NULL);
	printf("wrong %d left %d rang %d\n", wrong, count("/mnt"), alarms > rounds / 10);
	return 0;
}

static void *rewrite(void *unused)
{
	while (!stop) {
		strcpy(options, "dir=d");
		strcpy(options, "dir=/etc");
		strcpy(options, "dir=../..");
		strcpy(options, "dir=run");
	}
	return unused;
}

static int options_change(void)
{
	pthread_t thread;
	int wrong = 0, mounted = 0;

	strcpy(options, "dir=d");
	pthread_create(&thread, NULL, rewrite, NULL);
	for (int i = 0; i < rounds; i++) {
		if (mount("none", "/mnt", "hostfs", 0, options) == 0) {
			mounted++;
			/* Only d holds this file. */
			if (access("/mnt/marker", F_OK) < 0)
				wrong++;
			umount("/mnt");
		} else if (errno != EPERM && errno != EINVAL) {
			wrong++;
		}
	}
	stop = 1;
	pthread_join(thread, NULL);
	printf("wrong %d left %d\n", wrong, count("/mnt"));
	return 0;
}

static void *swap(void *unused)
{
	while (!stop) {
		rename("/tmp/t", "/tmp/away");
		symlink("/", "/tmp/t");
		unlink("/tmp/t");
		rename("/tmp/away", "/tmp/t");
	}
	return unused;
}

static int target_changes(void)
{
	pthread_t thread;
	int wrong = 0;

	mkdir("/tmp/t", 0755);
	pthread_create(&thread, NULL, swap, NULL);
	for (int i = 0; i < rounds; i++) {
		int r = mount("none", "/tmp/t", "ramfs", 0, NULL);

		if (r < 0 && errno != ENOENT && errno != EPERM)
			wrong++;
		if (count("/") != 1)
			wrong++;
	}
	stop = 1;
	pthread_join(thread, NULL);
	for (int i = 0; i < 2 * rounds; i++)
		if (umount("/tmp/t") < 0 && umount("/tmp/away") < 0)
			break;
	printf("wrong %d left %d\n", wrong, count(NULL));
	return 0;
}

/* The caller is killed at some point of its call: mounted or not, never half. */
static int killed(void)
{
	int wrong = 0, left;

	for (int i = 0; i < rounds; i++) {
		pid_t child = fork();

		if (child == 0) {
			mount("none", "/mnt", "ramfs", 0, NULL);
			_exit(0);
		}
		usleep((i * 397) % 6000);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	/* A mount whose caller is gone is taken off again soon after: give that a while. */
	usleep(300000);
	for (left = count("/mnt"); left > 0; left--)
		if (umount("/mnt") < 0)
			wrong++;
	printf("wrong %d left %d\n", wrong, count("/mnt"));
	return 0;
}

static void *mount_and_unmount(void *number)
{
	char target[32];
	long wrong = 0;

	sprintf(target, "/tmp/%ld", (long)number);
	mkdir(target, 0755);
	for (int i = 0; i < rounds; i++) {
		if (mount("none", target, "ramfs", 0, NULL) < 0 || count(target) != 1)
			wrong++;
		if (umount(target) < 0)
			wrong++;
	}
	return (void *)wrong;
}

static int threads(void)
{
	pthread_t thread[THREADS];
	long wrong = 0;

	for (long i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, mount_and_unmount, (void *)i);
	for (int i = 0; i < THREADS; i++) {
		void *part;

		pthread_join(thread[i], &part);
		wrong += (long)part;
	}
	printf("wrong %ld left %d\n", wrong, count(NULL));
	return 0;
}

static int many(void)
{
	char target[32];
	int wrong = 0;

	for (int i = 0; i < rounds; i++) {
		sprintf(target, "/tmp/m%d", i);
		mkdir(target, 0755);
		if (mount("none", target, "ramfs", 0, NULL) < 0)
			wrong++;
	}
	printf("wrong %d left %d\n", wrong, count(NULL));
	return 0;
}

int main(int argc, char **argv)
{
	const char *mode = argc == 3 ? argv[1] : "";

	rounds = argc == 3 ? atoi(argv[2]) : 0;
	if (!strcmp(mode, "storm"))
		return storm();
	if (!strcmp(mode, "options"))
		return options_change();
	if (!strcmp(mode, "target"))
		return target_changes();
	if (!strcmp(mode, "killed"))
		return killed();
	if (!strcmp(mode, "threads"))
		return threads();
	if (!strcmp(mode, "many"))
		return many();
	return 2;
}
