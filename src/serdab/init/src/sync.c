/* SPDX-License-Identifier: Apache-2.0 */
/* sync(2) for the programs: dirty pages of mappings go to the fs servers of the root and of every
 * mount that is served like it. What the servers then have, they make durable when they are asked.
 *
 * In a child: it waits for fs servers, and pid 1 must stay able to answer meanwhile. */
#include "common.h"

#define TABLE_BYTES 16384 /* two paths and more: one line of proc_pid_mountinfo(5) fits */
#define MOUNT_POINT 4

static char table[TABLE_BYTES];

/* Not being able to get there is no error: something lies above it, or its server is gone, and then
 * the kernel process knows. */
static long write_back_at(const char *path)
{
	long fd = SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0), r;

	if (fd < 0)
		return 0;
	r = SYS1(__NR_syncfs, fd);
	SYS1(__NR_close, fd);
	return r;
}

static int is_octal(const char *s)
{
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' && s[2] <= '7';
}

/* White space and backslashes of paths are written as \040 and so on. */
static void unescape(char *text)
{
	char *out = text;

	while (*text) {
		if (text[0] == '\\' && is_octal(text + 1)) {
			*out++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 4;
		} else {
			*out++ = *text++;
		}
	}
	*out = 0;
}

static int starts_with(const char *text, const char *wanted)
{
	while (*wanted)
		if (*text++ != *wanted++)
			return 0;
	return 1;
}

static long write_back_line(char *line)
{
	char *path = line;
	int is_ours = 0;

	for (int i = 0; i < MOUNT_POINT; i++) {
		while (*path && *path != ' ')
			path++;
		if (*path)
			path++;
	}
	for (char *at = path; *at; at++)
		is_ours |= starts_with(at, " - fuse.serdab ");
	if (!is_ours)
		return 0;
	for (char *at = path; *at; at++)
		if (*at == ' ')
			*at = 0;
	unescape(path);
	return write_back_at(path);
}

static long write_back_all(int table_fd)
{
	long r = write_back_at("/"), filled = 0, n;

	while ((n = SYS3(__NR_read, table_fd, table + filled, TABLE_BYTES - filled)) > 0) {
		char *line = table, *end = table + filled + n;

		for (char *at = table; at < end; at++) {
			if (*at != '\n')
				continue;
			*at = 0;
			long one = write_back_line(line);

			r = r < 0 ? r : one;
			line = at + 1;
		}
		filled = end - line;
		if (filled == TABLE_BYTES)
			return -EOVERFLOW;
		for (long i = 0; i < filled; i++)
			table[i] = line[i];
	}
	return r < 0 ? r : n;
}

void sync_mounts(const struct message *m)
{
	u32 serial = m->header->serial;
	long pid = m->fd_count == 1 ? errand_begin(OP_SYNCED, serial) : -EBADMSG;

	if (pid > 0)
		return;
	errand_answer(OP_SYNCED, serial, pid < 0 ? pid : write_back_all(m->fds[0]), -1);
	if (pid == 0)
		SYS1(__NR_exit_group, 0);
}
