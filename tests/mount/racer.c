/* SPDX-License-Identifier: Apache-2.0 */
/* Programs that make it hard to mount the right thing in the right place: racer MODE HOW [FILE].
 *
 * HOW is a number of rounds, or with an `s` behind it of seconds. It mounts once, says `ready` and
 * waits for a line before it starts, tells what it found, and waits for another before it ends, so
 * that somebody outside can count what is left. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define THREADS 8

static volatile int stop;
static volatile long alarms;
static int rounds;
static double end_at;
static char options[64];

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int goes_on(int round)
{
	return rounds ? round < rounds : now() < end_at;
}

static void wait_for_line(void)
{
	char c = 0;

	while (read(0, &c, 1) == 1 && c != '\n')
		;
}

static void ring(int signal)
{
	(void)signal;
	alarms++;
}

/* How many lines of the mount table have this mount point; for NULL, one of a program's. */
static int count(const char *target)
{
	char line[1024], where[512], type[64];
	FILE *table = fopen("/proc/mounts", "r");
	int n = 0;

	while (table && fgets(line, sizeof(line), table))
		if (sscanf(line, "%*s %511s %63s", where, type) == 2 &&
		    (target ? !strcmp(where, target)
			    : !strncmp(where, "/tmp/", 5) || !strncmp(where, "/mnt", 4)))
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
	int wrong = 0, i;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (i = 0; goes_on(i) || i % 10; i++) {
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
	printf("wrong %d left %d rang %d\n", wrong, count("/mnt"), alarms > i / 10);
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
	int wrong = 0;

	strcpy(options, "dir=d");
	pthread_create(&thread, NULL, rewrite, NULL);
	for (int i = 0; goes_on(i); i++) {
		if (mount("none", "/mnt", "hostfs", 0, options) == 0) {
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
	int wrong = 0, i;

	mkdir("/tmp/t", 0755);
	pthread_create(&thread, NULL, swap, NULL);
	for (i = 0; goes_on(i); i++) {
		int r = mount("none", "/tmp/t", "ramfs", 0, NULL);

		if (r < 0 && errno != ENOENT && errno != EPERM)
			wrong++;
		if (count("/") != 1)
			wrong++;
		/* Not too many at once, or the table of mounts takes all the time there is. */
		if (i % 50 == 49)
			while (umount("/tmp/t") == 0 || umount("/tmp/away") == 0)
				;
	}
	stop = 1;
	pthread_join(thread, NULL);
	while (umount("/tmp/t") == 0 || umount("/tmp/away") == 0)
		;
	printf("wrong %d left %d\n", wrong, count(NULL));
	return 0;
}

/* Callers are killed at some point of their calls, two at a time, so that one may lie on the other:
 * mounted or not, never half, and never the other one. */
static int killed(void)
{
	int wrong = 0;

	for (int i = 0; goes_on(i); i++) {
		pid_t children[2];

		for (int k = 0; k < 2; k++) {
			children[k] = fork();
			if (children[k] == 0) {
				mount("none", "/mnt", "ramfs", 0, NULL);
				_exit(0);
			}
		}
		for (int k = 0; k < 2; k++) {
			usleep((i * 397) % 3000);
			kill(children[k], SIGKILL);
			waitpid(children[k], NULL, 0);
		}
	}
	/* A mount whose caller is gone is taken off again, some time after: perhaps before us. */
	while (!wrong && count("/mnt"))
		if (umount("/mnt") < 0 && errno != EINVAL)
			wrong++;
	printf("wrong %d left %d\n", wrong, count("/mnt"));
	return 0;
}

/* Every third one a sealed volume, which keeps what was written to it. */
static void *mount_and_unmount(void *number)
{
	char target[32], file[48], given[32];
	long wrong = 0, n = (long)number;
	int is_sealed = n % 3 == 0;

	sprintf(target, "/tmp/%ld", n);
	sprintf(file, "/tmp/%ld/f", n);
	sprintf(given, "dir=v%ld", n);
	mkdir(target, 0755);
	for (int i = 0; goes_on(i); i++) {
		if (mount("none", target, is_sealed ? "sefs" : "ramfs", 0, given) < 0 ||
		    count(target) != 1)
			wrong++;
		if ((access(file, F_OK) == 0) != (is_sealed && i > 0))
			wrong++;
		close(open(file, O_CREAT | O_WRONLY, 0600));
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

/* All at once, by turns a volume and a union; then none. */
static int many(void)
{
	char target[32], given[64];
	int wrong = 0, i;

	for (i = 0; i < rounds; i++) {
		sprintf(target, "/tmp/m%d", i);
		mkdir(target, 0755);
		if (i % 2)
			sprintf(given, "lowerdir=l%d,upperdir=v%d", i, i);
		else
			sprintf(given, "dir=v%d", i);
		if (mount("none", target, i % 2 ? "unionfs" : "sefs", 0, given) < 0) {
			perror(given);
			wrong++;
		}
		strcat(target, "/f");
		close(open(target, O_CREAT | O_WRONLY, 0600));
	}
	printf("many wrong %d\n", wrong);
	fflush(stdout);
	wait_for_line();
	for (i = 0; i < rounds; i++) {
		sprintf(target, "/tmp/m%d/f", i);
		if (access(target, F_OK) < 0)
			wrong++;
		sprintf(target, "/tmp/m%d", i);
		if (umount(target) < 0 || count(target))
			wrong++;
	}
	printf("wrong %d left %d\n", wrong, count(NULL));
	return 0;
}

static char *slow_page;
static pthread_barrier_t all_there;

static void *call_slowly(void *unused)
{
	const char *said = "slow ok\n";

	pthread_barrier_wait(&all_there);
	if (mount("none", "/mnt", "sefs", 0, slow_page) < 0)
		said = errno == EFAULT ? "slow EFAULT\n" : errno == EAGAIN ? "slow EAGAIN\n" : "slow\n";
	/* Nothing that allocates: the map of this process is locked until its page is there. */
	write(1, said, strlen(said));
	return unused;
}

/* Another process: who reads the page for a caller holds up what the caller does with its memory. */
static void others(int start)
{
	int wrong = 0, refused = 0;
	char c;

	if (read(start, &c, 1) != 1)
		_exit(1);
	/* So few that they are done long before the slow ones meet their deadline, however slow
	 * this machine is: who waited for a slow one would wait for that. */
	for (int i = 0; i < 4; i++) {
		/* EAGAIN is for those who come while very many wait. */
		if (mount("none", "/tmp", "ramfs", 0, NULL) == 0)
			umount("/tmp");
		else if (errno == EAGAIN)
			refused++;
		else
			wrong++;
	}
	printf("others wrong %d refused %d\n", wrong, refused);
	fflush(stdout);
	_exit(0);
}

/* `file` lies in a file system that does not answer: calls with their options in a page of it. */
static int slow(const char *file, int callers)
{
	pthread_t *thread = calloc((size_t)callers, sizeof(*thread));
	int fd = open(file, O_RDONLY), start[2];

	slow_page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	if (fd < 0 || slow_page == MAP_FAILED || pipe(start) < 0)
		return 3;
	if (fork() == 0)
		others(start[0]);
	pthread_barrier_init(&all_there, NULL, (unsigned int)callers + 1);
	for (int i = 0; i < callers; i++)
		pthread_create(&thread[i], NULL, call_slowly, NULL);
	printf("mapped\n");
	fflush(stdout);
	wait_for_line();
	pthread_barrier_wait(&all_there);
	wait_for_line();
	write(start[1], "", 1);
	wait(NULL);
	for (int i = 0; i < callers; i++)
		pthread_join(thread[i], NULL);
	/* Those whose umount was met by EAGAIN, as this one may be. */
	while (umount("/tmp") == 0 || errno == EAGAIN)
		;
	printf("joined\n");
	return 0;
}

static int run(const char *mode, const char *file)
{
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
	if (!strcmp(mode, "slow") && file)
		return slow(file, rounds);
	return 2;
}

int main(int argc, char **argv)
{
	int status;
	char *rest;

	if (argc < 3)
		return 2;
	rounds = (int)strtol(argv[2], &rest, 10);
	/* What is made once at the first mount is there before anybody counts. */
	if (mount("none", "/mnt", "sefs", 0, "dir=first") < 0)
		perror("first");
	if (argc > 3)
		close(open("/mnt/page", O_CREAT | O_WRONLY, 0600)), truncate("/mnt/page", 4096);
	umount("/mnt");
	if (argc > 3 && mount("none", "/mnt2", "sefs", 0, "dir=first") < 0)
		perror("first again");
	printf("ready\n");
	fflush(stdout);
	wait_for_line();
	if (*rest == 's') {
		end_at = now() + rounds;
		rounds = 0;
	}
	status = run(argv[1], argc > 3 ? argv[3] : NULL);
	fflush(stdout);
	wait_for_line();
	return status;
}
