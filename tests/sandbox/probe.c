/* SPDX-License-Identifier: Apache-2.0 */
/* One act of a hostile program per name; prints "ok" or the errno, and exits 0. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
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
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static void say(long r)
{
	if (r >= 0)
		printf("ok\n");
	else
		printf("%s\n", strerrorname_np(errno));
}

static void raw(long number)
{
	say(syscall(number, 0, 0, 0, 0, 0, 0));
}

static long in_new_namespaces(void)
{
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) {
		printf("unshare ");
		return -1;
	}
	return mount("none", "/tmp", "ramfs", 0, NULL);
}

static long int80(int number)
{
#ifdef __x86_64__
	long r;
	__asm__ volatile("int $0x80" : "=a"(r) : "a"(number) : "memory", "r8", "r9", "r10", "r11");
	if (r < 0 && r > -4096) {
		errno = (int)-r;
		return -1;
	}
	return r;
#else
	errno = ENOSYS;
	return -1;
#endif
}

static long connect_abstract(const char *name)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int s = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(a.sun_path + 1, name, sizeof(a.sun_path) - 2);
	return connect(s, (void *)&a, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
}

static long own_listener(void)
{
	struct sock_filter f[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
	struct sock_fprog p = {1, f};

	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &p);
}

static void chroot_escape(void)
{
	struct stat before, after;
	int fd = open("/", O_RDONLY | O_DIRECTORY);

	stat("/", &before);
	mkdir("/tmp/jail", 0700);
	if (chroot("/tmp/jail") < 0) {
		say(-1);
		return;
	}
	if (fchdir(fd) < 0)
		perror("fchdir");
	for (int i = 0; i < 64; i++)
		if (chdir("..") < 0)
			break;
	if (chroot(".") < 0)
		perror("chroot");
	stat("/", &after);
	printf("%s\n", before.st_dev == after.st_dev && before.st_ino == after.st_ino ? "same root"
									      : "escaped");
}

static void list_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;

	while ((e = readdir(d)))
		if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d))
			printf("%s ", e->d_name);
	printf("\n");
}

/* Set an attribute; the value is written in hexadecimal. */
static long set_attribute(const char *path, const char *name, const char *hex)
{
	unsigned char value[512];
	size_t n = 0;

	for (; n < sizeof(value) && sscanf(hex + 2 * n, "%2hhx", value + n) == 1; n++)
		;
	return setxattr(path, name, value, n, 0);
}

int main(int argc, char **argv)
{
	const char *act = argc > 1 ? argv[1] : "";
	const char *arg = argc > 2 ? argv[2] : "";

	if (!strcmp(act, "write"))
		say(open(arg, O_WRONLY));
	else if (!strcmp(act, "read"))
		say(open(arg, O_RDONLY));
	else if (!strcmp(act, "readbytes")) {
		char b[16];
		int fd = open(arg, O_RDONLY);
		long n = fd < 0 ? -1 : read(fd, b, sizeof(b));
		if (n < 0)
			say(-1);
		else
			printf("%ld\n", n);
	} else if (!strcmp(act, "syscall"))
		raw(strtol(arg, 0, 0));
	else if (!strcmp(act, "int80"))
		say(int80(atoi(arg)));
	else if (!strcmp(act, "ptrace"))
		say(ptrace(PTRACE_ATTACH, atoi(arg), 0, 0));
	else if (!strcmp(act, "ioctl"))
		say(syscall(SYS_ioctl, 0, strtoul(arg, 0, 0), "x"));
	else if (!strcmp(act, "setns"))
		say(setns(open("/proc/self/ns/mnt", O_RDONLY), (int)strtol(arg, 0, 0)));
	else if (!strcmp(act, "mknod"))
		say(mknod("/tmp/device", S_IFBLK | 0666, makedev(8, 0)));
	else if (!strcmp(act, "mount"))
		say(mount("none", "/tmp", "tmpfs", 0, ""));
	else if (!strcmp(act, "umount"))
		say(umount2(arg, MNT_DETACH));
	else if (!strcmp(act, "nested"))
		say(in_new_namespaces());
	else if (!strcmp(act, "chroot"))
		chroot_escape();
	else if (!strcmp(act, "fds"))
		list_fds();
	else if (!strcmp(act, "abstract"))
		say(connect_abstract(arg));
	else if (!strcmp(act, "listener"))
		say(own_listener());
	else if (!strcmp(act, "kill"))
		say(kill(atoi(arg), 0));
	else if (!strcmp(act, "sethostname"))
		say(sethostname("x", 1));
	else if (!strcmp(act, "rawsocket"))
		say(socket(AF_INET, SOCK_RAW, 1));
	else if (!strcmp(act, "setuid"))
		say(setuid(atoi(arg)));
	else if (!strcmp(act, "euid"))
		printf("%d\n", geteuid());
	else if (!strcmp(act, "as")) { /* as UID PROGRAM ARG */
		if (setgid(atoi(arg)) < 0 || setuid(atoi(arg)) < 0)
			say(-1);
		else
			say(execv(argv[3], argv + 3));
	} else if (!strcmp(act, "setxattr")) /* setxattr PATH NAME HEX */
		say(argc > 4 ? set_attribute(arg, argv[3], argv[4]) : -1);
	else if (!strcmp(act, "chown"))
		say(chown("/tmp", atoi(arg), atoi(arg)));
	else if (!strcmp(act, "forks")) {
		int n = 0;
		for (; n < atoi(arg); n++) {
			pid_t p = fork();
			if (p < 0)
				break;
			if (p == 0) {
				pause();
				_exit(0);
			}
		}
		printf("%d\n", n);
		fflush(stdout);
		_exit(0);
	} else if (!strcmp(act, "eat")) {
		size_t total = 0;
		for (; total < (size_t)atol(arg); total += 1 << 20) {
			char *p = malloc(1 << 20);
			if (!p)
				break;
			memset(p, 1, 1 << 20);
		}
		printf("%zu\n", total);
	} else
		return 64;
	return 0;
}
