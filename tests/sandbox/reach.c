/* SPDX-License-Identifier: Apache-2.0 */
/* A hostile program that tries to reach processes outside. Each line of standard input is an act
 * and the process id outside that it aims at, which is also its group's; it answers with "ok" or
 * the errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long owner(int who, int number)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0 || fcntl(ends[0], F_SETSIG, number) < 0 ||
	    fcntl(ends[0], F_SETOWN, who) < 0 || fcntl(ends[0], F_SETFL, O_ASYNC) < 0)
		return -1;
	return write(ends[1], "x", 1);
}

static long timer(int thread)
{
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGTERM};
	timer_t made;

	event._sigev_un._tid = thread;
	return timer_create(CLOCK_MONOTONIC, &event, &made);
}

static long put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	long r = fd < 0 ? -1 : write(fd, text, strlen(text));

	close(fd);
	return r;
}

static long act(const char *what, int pid)
{
	struct sched_param none = {0};
	siginfo_t info = {.si_signo = SIGTERM, .si_code = SI_QUEUE};
	struct rlimit small = {64, 64};
	const int idle = 3 << 13; /* IOPRIO_CLASS_IDLE */

	if (!strcmp(what, "kill 0"))
		return kill(0, SIGTERM);
	if (!strcmp(what, "kill -1"))
		return kill(-1, SIGTERM);
	if (!strcmp(what, "stop 0"))
		return kill(0, SIGTSTP);
	if (!strcmp(what, "kill group"))
		return kill(-pid, SIGTERM);
	if (!strcmp(what, "kill"))
		return kill(pid, SIGTERM);
	if (!strcmp(what, "tkill"))
		return syscall(SYS_tkill, pid, SIGTERM);
	if (!strcmp(what, "tgkill"))
		return syscall(SYS_tgkill, pid, pid, SIGTERM);
	if (!strcmp(what, "sigqueue"))
		return syscall(SYS_rt_sigqueueinfo, pid, SIGTERM, &info);
	if (!strcmp(what, "sigqueue thread"))
		return syscall(SYS_rt_tgsigqueueinfo, pid, pid, SIGTERM, &info);
	if (!strcmp(what, "pidfd"))
		return syscall(SYS_pidfd_open, pid, 0);
	if (!strcmp(what, "pidfd of the parent")) {
		int fd = (int)syscall(SYS_pidfd_open, getppid(), 0);
		return syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0);
	}
	if (!strcmp(what, "pidfd of the group")) { /* PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9 */
		int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
		return syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 4);
	}
	if (!strcmp(what, "owner"))
		return owner(pid, SIGTERM);
	if (!strcmp(what, "owner group"))
		return owner(-pid, SIGTERM);
	if (!strcmp(what, "owner own group"))
		return owner(-getpgrp(), SIGTERM);
	if (!strcmp(what, "timer"))
		return timer(pid);
	if (!strcmp(what, "nice process"))
		return setpriority(PRIO_PROCESS, pid, 5);
	if (!strcmp(what, "nice own group"))
		return setpriority(PRIO_PGRP, 0, 5);
	if (!strcmp(what, "nice group"))
		return setpriority(PRIO_PGRP, pid, 5);
	if (!strcmp(what, "nice own user"))
		return setpriority(PRIO_USER, 0, 6);
	if (!strcmp(what, "nice inner root"))
		return setpriority(PRIO_USER, getuid(), 7);
	if (!strcmp(what, "ionice process"))
		return syscall(SYS_ioprio_set, 1, pid, idle);
	if (!strcmp(what, "ionice own group"))
		return syscall(SYS_ioprio_set, 2, 0, idle);
	if (!strcmp(what, "ionice group"))
		return syscall(SYS_ioprio_set, 2, pid, idle);
	if (!strcmp(what, "ionice own user"))
		return syscall(SYS_ioprio_set, 3, getuid(), idle);
	if (!strcmp(what, "scheduler"))
		return sched_setscheduler(pid, SCHED_IDLE, &none);
	if (!strcmp(what, "limit"))
		return prlimit(pid, RLIMIT_NOFILE, &small, NULL);
	if (!strcmp(what, "join group"))
		return setpgid(0, pid);
	if (!strcmp(what, "terminal to group"))
		return tcsetpgrp(2, pid);
	if (!strcmp(what, "autogroup"))
		return put("/proc/self/autogroup", "11");
	if (!strcmp(what, "autogroup of pid 1"))
		return put("/proc/1/autogroup", "11");
	if (!strcmp(what, "kill -9 0"))
		return kill(0, SIGKILL);
	errno = EDOM;
	return -1;
}

int main(int argc, char **argv)
{
	char line[128], *pid;

	signal(SIGTERM, SIG_IGN);
	signal(SIGTSTP, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 1 && getpid() > 1 && !strcmp(argv[0], "init")) /* as /bin/init: during the boot */
		return (int)act("kill -9 0", 0);
	while (fgets(line, sizeof(line), stdin)) {
		pid = strrchr(line, ' ');
		*pid++ = 0;
		printf("%s\n", act(line, atoi(pid)) < 0 ? strerrorname_np(errno) : "ok");
	}
	return 0;
}
