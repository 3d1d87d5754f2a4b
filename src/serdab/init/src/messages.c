/* SPDX-License-Identifier: Apache-2.0 */
/* Datagrams with descriptors, and the few string functions a compiler may call by itself. */
#include "common.h"

#define SOL_SOCKET_ 1
#define SCM_RIGHTS_ 1
#define MSG_CTRUNC_ 0x8
#define MSG_TRUNC_ 0x20
#define MSG_NOSIGNAL_ 0x4000
#define MSG_CMSG_CLOEXEC_ 0x40000000

struct io_vector {
	void *base;
	u64 len;
};

struct message_header {
	void *name;
	u32 name_len, pad0;
	struct io_vector *iov;
	u64 iov_len;
	void *control;
	u64 control_len;
	int flags;
	u32 pad1;
};

struct control_rights {
	u64 len;
	int level, type;
	int fds[MAX_FDS];
};

static u8 buffer[MESSAGE_BYTES] __attribute__((aligned(16)));

void *memcpy(void *dst, const void *src, u64 n)
{
	volatile u8 *d = dst; /* volatile: else the compiler turns the loop into a call to itself */
	const u8 *s = src;

	while (n--)
		*d++ = *s++;
	return dst;
}

void *memset(void *dst, int c, u64 n)
{
	volatile u8 *d = dst;

	while (n--)
		*d++ = (u8)c;
	return dst;
}

u64 text_len(const char *s)
{
	u64 n = 0;

	while (s[n])
		n++;
	return n;
}

/* Only for what cannot be told to the kernel process: the socket itself is gone. */
__attribute__((noreturn)) void die(const char *text, long error)
{
	(void)error;
	SYS3(__NR_write, 2, text, text_len(text));
	SYS1(__NR_exit_group, 1);
	__builtin_unreachable();
}

/* Returns the length of the datagram, 0 at end of file, -errno. */
long receive(struct message *m)
{
	struct control_rights control;
	struct io_vector iov = {buffer, sizeof(buffer)};
	struct message_header h;
	long r;

	memset(&h, 0, sizeof(h));
	h.iov = &iov;
	h.iov_len = 1;
	h.control = &control;
	h.control_len = sizeof(control);
	m->fd_count = 0;
	do {
		r = SYS3(__NR_recvmsg, CONTROL_FD, &h, MSG_CMSG_CLOEXEC_);
	} while (r == -EINTR);
	if (r <= 0)
		return r;
	if (h.control_len > 16 && control.level == SOL_SOCKET_ && control.type == SCM_RIGHTS_) {
		m->fd_count = (int)((control.len - 16) / sizeof(int));
		memcpy(m->fds, control.fds, (u64)m->fd_count * sizeof(int));
	}
	if ((h.flags & (MSG_TRUNC_ | MSG_CTRUNC_)) || r < (long)sizeof(struct header))
		return -EBADMSG;
	m->header = (struct header *)buffer;
	m->body = buffer + sizeof(struct header);
	m->body_len = r - (long)sizeof(struct header);
	return r;
}

long send(const struct header *h, int fd)
{
	struct control_rights control;
	struct io_vector iov = {(void *)h, sizeof(*h)};
	struct message_header m;
	long r;

	memset(&m, 0, sizeof(m));
	m.iov = &iov;
	m.iov_len = 1;
	if (fd >= 0) {
		control.len = 16 + sizeof(int);
		control.level = SOL_SOCKET_;
		control.type = SCM_RIGHTS_;
		control.fds[0] = fd;
		m.control = &control;
		m.control_len = 24; /* CMSG_SPACE: aligned */
	}
	do {
		r = SYS3(__NR_sendmsg, CONTROL_FD, &m, MSG_NOSIGNAL_);
	} while (r == -EINTR);
	return r;
}
