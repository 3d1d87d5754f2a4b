/* SPDX-License-Identifier: Apache-2.0 */
/* What intercepted calls cost: calls ROUNDS inside an instance, calls bare ROUNDS outside.
 *
 * `bare` installs a filter and answers the same call from a listener in C that does nothing else. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
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

static void refused(const char *name, int rounds, const char *target)
{
	double *times = calloc((size_t)rounds, sizeof(double));

	for (int i = 0; i < rounds; i++) {
		double start = now();

		syscall(SYS_umount2, target, 16);
		times[i] = now() - start;
	}
	printf("%s %.1f us\n", name, median(times, rounds));
	free(times);
}

static void cheap(int rounds)
{
	double start = now();

	for (int i = 0; i < rounds * 1000; i++)
		syscall(SYS_getppid);
	printf("getppid %.1f ns\n", (now() - start) / rounds);
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
	printf("unionfs_usable %.1f us\n", median(times, rounds));
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

static int bare(int rounds)
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

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
				SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	if (listener < 0)
		return 1;
	child = fork();
	if (child == 0)
		listen_for_ever(listener);
	refused("bare", rounds, "/mnt");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "bare")) {
		cheap(atoi(argv[2]));
		return bare(atoi(argv[2]));
	}
	if (argc != 2)
		return 2;
	cheap(atoi(argv[1]));
	refused("refused", atoi(argv[1]), "/mnt");
	refused("refused_null", atoi(argv[1]), NULL);
	mounts(20);
	return 0;
}
