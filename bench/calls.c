/* SPDX-License-Identifier: Apache-2.0 */
/* What intercepted calls cost: calls inside ROUNDS CPU and calls mounts ROUNDS in an instance, calls
 * bare ROUNDS CPU OTHER outside it.
 *
 * `bare` installs a filter and answers the same call from a listener in C that does nothing else.
 * The calls are made on CPU; the listener in C runs on OTHER. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void pin(const char *number)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(atoi(number), &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0) {
		perror("sched_setaffinity");
		exit(1);
	}
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *times, int n)
{
	qsort(times, (size_t)n, sizeof(*times), by_size);
	return times[n / 2];
}

enum call { NULL_TARGET, BAD_FLAGS, ROOT, BAD_TYPE, POLICY, TOO_LATE, PLAIN };

static long make(enum call call)
{
	switch (call) {
	case NULL_TARGET:
		return umount2(NULL, 0);
	case BAD_FLAGS:
		return umount2("/mnt", 16);
	case ROOT:
		return umount2("/", 0);
	case BAD_TYPE:
		return mount("none", "/mnt", "nosuchfs", 0, "dir=x");
	case POLICY:
		return mount("none", "/mnt", "ramfs", 0, NULL);
	case TOO_LATE:
		return syscall(363, NULL, NULL);
	default:
		return umount2("/mnt", 0);
	}
}

static void refused(const char *name, int rounds, enum call call)
{
	double *times = calloc((size_t)rounds, sizeof(double));

	for (int i = 0; i < rounds; i++) {
		double start = now();

		make(call);
		times[i] = now() - start;
	}
	printf("%s %.2f\n", name, median(times, rounds));
	free(times);
}

static void cheap(const char *name)
{
	double times[101];

	for (int i = 0; i < 101; i++) {
		double start = now();

		for (int j = 0; j < 20000; j++)
			syscall(SYS_getppid);
		times[i] = (now() - start) / 20;
	}
	printf("%s %.1f\n", name, median(times, 101));
}

static void mounts(int rounds)
{
	double *times = calloc((size_t)rounds, sizeof(double));

	for (int i = 0; i < rounds; i++) {
		double start = now();
		int fd;

		if (mount("none", "/mnt", "unionfs", 0, "lowerdir=l,upperdir=u") < 0) {
			perror("unionfs");
			return;
		}
		fd = open("/mnt/f", O_CREAT | O_WRONLY, 0600);
		times[i] = now() - start;
		close(fd);
		umount("/mnt");
	}
	printf("unionfs_usable %.1f\n", median(times, rounds));
	free(times);
}

static void listen_for_ever(int listener)
{
	struct seccomp_notif request;
	struct seccomp_notif_resp response;

	for (;;) {
		memset(&request, 0, sizeof(request));
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &request) < 0)
			_exit(0);
		memset(&response, 0, sizeof(response));
		response.id = request.id;
		response.error = -EINVAL;
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
	}
}

static int bare(int rounds, const char *cpu, const char *other)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_umount2, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {4, code};
	pid_t child;
	int listener;

	pin(cpu);
	cheap("getppid");
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
				SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	if (listener < 0)
		return 1;
	cheap("getppid_filter");
	child = fork();
	if (child == 0) {
		pin(other);
		listen_for_ever(listener);
	}
	refused("bare", rounds, PLAIN);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return 0;
}

int main(int argc, char **argv)
{
	int rounds = argc > 2 ? atoi(argv[2]) : 0;

	if (argc == 5 && !strcmp(argv[1], "bare"))
		return bare(rounds, argv[3], argv[4]);
	if (argc == 3 && !strcmp(argv[1], "mounts")) {
		mounts(rounds);
		return 0;
	}
	if (argc != 4 || strcmp(argv[1], "inside"))
		return 2;
	pin(argv[3]);
	cheap("getppid");
	refused("null_target", rounds, NULL_TARGET);
	refused("bad_flags", rounds, BAD_FLAGS);
	refused("root", rounds, ROOT);
	refused("bad_type", rounds, BAD_TYPE);
	refused("policy", rounds, POLICY);
	refused("too_late", rounds, TOO_LATE);
	return 0;
}
