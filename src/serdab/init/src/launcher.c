/* SPDX-License-Identifier: Apache-2.0 */
/* The launcher: the only program of ours that enters the sandbox. It becomes pid 1 there.
 *
 * Outside it lives for one system call: clone into new namespaces, with the kernel process as the
 * parent of the new process (CLONE_PARENT), so that nothing stands between the two. Inside it
 * waits for messages: set up, run a list of mount steps, start a program, pass a signal on. When
 * the socket closes, or the kernel process dies, it ends, and the pid namespace with it.
 *
 * Started with an argument it is the worker instead, see worker.c.
 *
 * It is started in a process group of its own, whose leader is gone at once: a group that nobody
 * inside can name, and that a process may leave for a session of its own (setsid(2)).
 *
 * It is executed from a sealed memfd: /proc/1/exe inside is no file of the host. It is not
 * dumpable, so no program inside can open its memory or descriptors. */
#include <linux/mount.h>
#include <linux/poll.h>
#include <linux/prctl.h>
#include <linux/sched.h>

#include "common.h"

#define PRIVATE_RECURSIVE ((1 << 18) | 16384)
#define KEYCTL_JOIN_SESSION_KEYRING_ 1
#define SCOPE_ABSTRACT_UNIX_SOCKET 1
#define LANDLOCK_ABI_WITH_SCOPES 6
#define SFD_CLOEXEC_ 02000000

struct landlock_attr {
	u64 handled_access_fs, handled_access_net, scoped;
};

static u64 inherited_mask;

static void answer(u16 op, long result, u32 serial, u32 value)
{
	struct header h;

	memset(&h, 0, sizeof(h));
	h.op = op;
	h.result = (s32)(result < 0 ? result : 0);
	h.serial = serial;
	h.value = value;
	send(&h, -1);
}

/* Abstract sockets belong to the network namespace, which is the host's unless the configuration
 * says otherwise. The domain is pid 1's, so all programs of an instance share it. */
static u32 scope_abstract_sockets(void)
{
	struct landlock_attr attr = {0, 0, SCOPE_ABSTRACT_UNIX_SOCKET};
	long fd;

	if (SYS3(NR_LANDLOCK_CREATE_RULESET, 0, 0, 1 /* version */) < LANDLOCK_ABI_WITH_SCOPES)
		return 0;
	fd = SYS3(NR_LANDLOCK_CREATE_RULESET, &attr, sizeof(attr), 0);
	if (fd < 0)
		return 0;
	long r = SYS2(NR_LANDLOCK_RESTRICT_SELF, fd, 0);

	SYS1(__NR_close, fd);
	return r < 0 ? 0 : FEATURE_LANDLOCK_SCOPE;
}

/* Programs expect 127.0.0.1 to answer: a new network namespace has the device, but down. */
static long separate_network(void)
{
	struct {
		char name[16];
		short flags;
		char pad[22];
	} request;
	long fd, r = SYS1(__NR_unshare, CLONE_NEWNET);

	if (r < 0)
		return r;
	fd = SYS3(__NR_socket, 2 /* AF_INET */, 2 /* SOCK_DGRAM */ | SFD_CLOEXEC_, 0);
	if (fd < 0)
		return fd;
	memset(&request, 0, sizeof(request));
	request.name[0] = 'l';
	request.name[1] = 'o';
	request.flags = 0x41; /* IFF_UP | IFF_RUNNING */
	r = SYS3(__NR_ioctl, fd, 0x8914 /* SIOCSIFFLAGS */, &request);
	SYS1(__NR_close, fd);
	return r;
}

long write_text(const char *path, const char *text)
{
	long fd = SYS4(__NR_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0), r;

	if (fd < 0)
		return fd;
	r = SYS3(__NR_write, fd, text, text_len(text));
	SYS1(__NR_close, fd);
	return r;
}

/* System V segments and messages outlive their makers, so nobody who is killed for memory gives them
 * back. The owner of an IPC namespace may set its limits since Linux 5.19 (ipc_namespaces(7)). The
 * /proc is the one of outside: it shows the limits of who looks. */
static u32 bound_ipc(void)
{
	char text[12];

	if (!given.shm_pages)
		return 0;
	if (write_text("/proc/sys/kernel/shmall", decimal((int)given.shm_pages, text)) < 0 ||
	    write_text("/proc/sys/kernel/msgmni", "16") < 0)
		return 0;
	return FEATURE_IPC_BOUND;
}

/* Each number is the `serial` of the answer when that step failed. */
static void set_up(const struct message *m)
{
	static const u32 root_group;
	u32 step = 1, features = 0;
	long r;

	keep_setup(m);
	r = open_fuse(given.fuse_count);
	if (r >= 0 && ++step && given.drop_groups)
		r = SYS2(__NR_setgroups, 1, &root_group); /* as a login of root has it */
	if (r >= 0 && ++step)
		r = SYS3(__NR_setresgid, 0, 0, 0);
	if (r >= 0 && ++step)
		r = SYS3(__NR_setresuid, 0, 0, 0);
	/* After the change of ids, which resets both. */
	if (r >= 0 && ++step)
		r = SYS5(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (r >= 0 && ++step)
		r = SYS5(__NR_prctl, PR_SET_PDEATHSIG, SIG_KILL, 0, 0, 0);
	if (r >= 0 && ++step)
		r = SYS5(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (r >= 0 && ++step && given.own_session)
		r = SYS0(__NR_setsid);
	if (r >= 0 && ++step && given.own_network)
		r = separate_network();
	if (r >= 0 && ++step)
		r = SYS5(__NR_mount, "none", "/", 0, PRIVATE_RECURSIVE, 0);
	if (r >= 0 && ++step) {
		r = SYS3(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING_, 0, 0);
		if (r == -ENOSYS) /* a kernel without keys has none to keep apart */
			r = 0;
	}
	if (r >= 0 && ++step)
		r = pass_numbers();
	SYS1(__NR_umask, 0);
	if (r >= 0)
		features = bound_ipc();
	if (r >= 0)
		features |= scope_abstract_sockets();
	answer(OP_READY, r, step, features);
}

__attribute__((noreturn)) static void serve(void)
{
	static const u64 all = ~0ul;
	static const u64 child = 1ul << (SIG_CHLD - 1);
	struct pollfd poll[2];
	struct message m;
	u8 drained[128 * 8];

	SYS5(__NR_prctl, PR_SET_NAME, "serdab", 0, 0, 0);
	/* Blocked, not handled: to pid 1 a signal without a handler does nothing, and a stop or
	 * an interrupt from the terminal is meant for the programs. */
	SYS4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &all, &inherited_mask, SIGNAL_SET_BYTES);
	poll[0].fd = CONTROL_FD;
	poll[1].fd = (int)SYS4(__NR_signalfd4, -1, &child, SIGNAL_SET_BYTES, SFD_CLOEXEC_);
	if (poll[1].fd < 0)
		die("launcher: signalfd\n", poll[1].fd);
	poll[0].events = poll[1].events = POLLIN;
	for (;;) {
		long r = SYS5(__NR_ppoll, poll, 2, 0, 0, SIGNAL_SET_BYTES);

		if (r < 0 && r != -EINTR)
			die("launcher: poll\n", r);
		if (poll[1].revents) {
			SYS3(__NR_read, poll[1].fd, drained, sizeof(drained));
			reap();
		}
		if (!poll[0].revents)
			continue;
		r = receive(&m);
		if (r <= 0)
			SYS1(__NR_exit_group, r < 0);
		switch (m.header->op) {
		case OP_SETUP:
			set_up(&m);
			break;
		case OP_PLAN:
			run_plan(&m);
			break;
		case OP_SPAWN:
			spawn(&m, &inherited_mask);
			break;
		case OP_KILL:
			kill_program(m.header);
			break;
		case OP_SYNC:
			sync_mounts(&m);
			break;
		case OP_TERMINAL:
			open_terminal(m.header);
			break;
		case OP_LEND:
			lend(&m);
			break;
		case OP_WHOSE:
			answer_whose();
			break;
		case OP_LEAVE:
			SYS0(__NR_setsid);
			break;
		default:
			die("launcher: unknown message\n", 0);
		}
		for (int i = 0; i < m.fd_count; i++)
			SYS1(__NR_close, m.fds[i]);
	}
}

/* stack: argc, then argv. In its second mode the program attaches the mounts of programs. */
__attribute__((used, noreturn)) static void launcher_main(const u64 *stack)
{
	if (stack[0] > 1)
		work();
	u64 flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS;
	long pid = SYS5(__NR_clone, flags | CLONE_PARENT | SIG_CHLD, 0, 0, 0, 0);
	if (pid == 0)
		serve();
	answer(OP_STARTED, pid, 0, (u32)(pid < 0 ? 0 : pid));
	SYS1(__NR_exit_group, pid < 0);
	__builtin_unreachable();
}

START(launcher_main);
