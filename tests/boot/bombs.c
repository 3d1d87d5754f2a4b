/* SPDX-License-Identifier: Apache-2.0 */
/* Programs that make others keep what they asked for; each prints how far it came, and goes on:
 *
 *   mounts N TYPE OPTIONS    at /tmp/m0 and so on; "%d" in OPTIONS is the number
 *   umounts N
 *   kept N TYPE OPTIONS      each with a file open, and unmounted at once
 *   fill PATH                writes until it may not
 *   segments                 of System V shared memory, filled, left to nobody
 *   queues                   of System V messages, the same
 *   sockets                  connected, with as much sent as they take and nothing received
 *   touch PID                what one process may do to another that it may not trace
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MIB (1 << 20)

static char chunk[MIB];

static void counted(const char *what, long n)
{
	printf("%s %ld %s\n", what, n, n < 0 || errno ? strerrorname_np(errno) : "ok");
}

static void make_mounts(int count, const char *type, const char *pattern, int keep)
{
	char place[64], options[256], file[80];
	int made = 0;

	for (; made < count; made++) {
		snprintf(place, sizeof(place), "/tmp/m%d", made);
		snprintf(options, sizeof(options), pattern, made);
		mkdir(place, 0755);
		errno = 0;
		if (mount("x", place, type, 0, options) < 0)
			break;
		if (!keep)
			continue;
		snprintf(file, sizeof(file), "%s/file", place);
		if (open(file, O_RDWR | O_CREAT, 0644) < 0)
			break;
		umount2(place, MNT_DETACH);
	}
	counted("mounts", made);
}

static void fill(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	long done = 0, n;

	memset(chunk, 'x', sizeof(chunk));
	for (long i = 0; i < MIB; i += 64) /* nothing that packs well */
		*(long *)(chunk + i) = random();
	while ((n = write(fd, chunk, sizeof(chunk))) > 0)
		done += n;
	if (n >= 0)
		errno = 0;
	counted("fill", done / MIB);
	close(fd);
}

static void segments(void)
{
	int made = 0, id;

	while (made < 4096 && (id = shmget(IPC_PRIVATE, MIB, IPC_CREAT | 0600)) >= 0) {
		char *at = shmat(id, NULL, 0);

		if (at == (char *)-1)
			break;
		memset(at, 'x', MIB);
		shmdt(at);
		made++;
	}
	counted("segments", made);
}

static void queues(void)
{
	static struct { long type; char text[8192]; } message = {1, ""};
	int made = 0, id;

	while (made < 100000 && (id = msgget(IPC_PRIVATE, IPC_CREAT | 0600)) >= 0) {
		while (msgsnd(id, &message, sizeof(message.text), IPC_NOWAIT) == 0)
			;
		made++;
	}
	counted("queues", made);
}

static void touched(const char *what, long r)
{
	printf("%s %s\n", what, r >= 0 ? "ok" : strerrorname_np(errno));
}

static void write_to(int pid, const char *name, const char *text)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_WRONLY);
	touched(name, fd < 0 ? -1 : write(fd, text, strlen(text)));
	if (fd >= 0)
		close(fd);
}

static void touch(int pid)
{
	struct rlimit limit = {64, 64};
	struct sched_param param = {0};
	/* struct sched_attr, SCHED_BATCH, nice 19 */
	struct { unsigned size, policy; unsigned long flags; int nice; unsigned rest[7]; } attr = {48, 3, 0, 19, {0}};
	unsigned long mask = 1;
	char byte;
	struct iovec mine = {&byte, 1}, theirs = {(void *)0x400000, 1};
	void *page = (void *)0x400000;
	int status;

	touched("prlimit", prlimit(pid, RLIMIT_NOFILE, &limit, NULL));
	touched("sched_setaffinity", sched_setaffinity(pid, sizeof(mask), (void *)&mask));
	touched("sched_setscheduler", sched_setscheduler(pid, SCHED_BATCH, &param));
	touched("sched_setparam", sched_setparam(pid, &param));
	touched("sched_setattr", syscall(SYS_sched_setattr, pid, &attr, 0));
	touched("setpriority", setpriority(PRIO_PROCESS, pid, 19));
	touched("setpriority-group", setpriority(PRIO_PGRP, pid, 19));
	touched("setpriority-user", setpriority(PRIO_USER, getuid(), 19));
	touched("ioprio_set", syscall(SYS_ioprio_set, 1, pid, 3 << 13));
	touched("ioprio_set-group", syscall(SYS_ioprio_set, 2, pid, 3 << 13));
	touched("ioprio_set-user", syscall(SYS_ioprio_set, 3, getuid(), 3 << 13));
	touched("ptrace", ptrace(PTRACE_SEIZE, pid, 0, 0));
	touched("kcmp", syscall(SYS_kcmp, pid, getpid(), 0, 0, 0));
	touched("process_vm_readv", process_vm_readv(pid, &mine, 1, &theirs, 1, 0));
	touched("move_pages", syscall(SYS_move_pages, pid, 1ul, &page, NULL, &status, 0));
	touched("migrate_pages", syscall(SYS_migrate_pages, pid, 1ul, &mask, &mask));
	write_to(pid, "oom_score_adj", "1000");
	write_to(pid, "coredump_filter", "0x7f");
	write_to(pid, "timerslack_ns", "1000000000");
	write_to(pid, "comm", "renamed");
	write_to(pid, "clear_refs", "1");
}

/* MiB that the kernel holds for 30 connections, at most about 240. */
static void fill_sockets(void)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(here);
	int wanted = 1 << 24, listener = socket(AF_INET, SOCK_STREAM, 0);
	long sent = 0;

	if (bind(listener, (void *)&here, length) || listen(listener, 64) ||
	    getsockname(listener, (void *)&here, &length)) {
		counted("sockets", -1);
		return;
	}
	for (int i = 0; i < 30; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		ssize_t r;

		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &wanted, sizeof(wanted));
		if (connect(fd, (void *)&here, length))
			break;
		accept(listener, NULL, NULL);
		fcntl(fd, F_SETFL, O_NONBLOCK);
		while ((r = send(fd, chunk, 1 << 16, MSG_NOSIGNAL)) > 0)
			sent += r;
	}
	errno = 0;
	counted("sockets", sent / MIB);
}

int main(int argc, char **argv)
{
	const char *act = argc > 1 ? argv[1] : "";

	errno = 0;
	if (!strcmp(act, "mounts") || !strcmp(act, "kept"))
		make_mounts(atoi(argv[2]), argv[3], argv[4], *act == 'k');
	else if (!strcmp(act, "umounts"))
		for (int i = 0; i < atoi(argv[2]); i++) {
			char place[64];

			snprintf(place, sizeof(place), "/tmp/m%d", i);
			umount2(place, 0);
		}
	else if (!strcmp(act, "fill"))
		fill(argv[2]);
	else if (!strcmp(act, "segments"))
		segments();
	else if (!strcmp(act, "queues"))
		queues();
	else if (!strcmp(act, "sockets"))
		fill_sockets();
	else if (!strcmp(act, "touch"))
		touch(atoi(argv[2]));
	else
		return 2;
	return 0;
}
