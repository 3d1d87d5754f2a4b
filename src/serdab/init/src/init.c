/* SPDX-License-Identifier: Apache-2.0 */
/* The default init: hand the image key, if there is one, to MountRootFS and get out of the way.
 *
 * It is the first program of an instance and runs alone, with the init FS as its root. Whatever
 * must happen before the application starts (attestation, fetching secrets) belongs into an init
 * of one's own; this one only does what every instance needs:
 *
 *   1. /etc/image_key, if it exists, holds sixteen hyphened hexadecimal bytes;
 *   2. MountRootFS (363) gets those bytes, or NULL, and NULL for "the configured root FS".
 *
 * Exit status: 0 done; 1 MountRootFS failed; 2 the key file cannot be read; 3 it holds no key.
 *
 * EIO and EINVAL are how MountRootFS refuses the root FS itself: then the kernel process tells the
 * operator why, which a number from here would only obscure. Any other error is told by nobody
 * else. */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>

#include "arch.h"

#define NR_MOUNT_ROOT_FS 363
#define KEY_BYTES 16

__attribute__((noreturn)) static void fail(const char *text, long error, int status)
{
	char line[160];
	int n = 0;

	for (const char *p = text; *p && n < 120; p++)
		line[n++] = *p;
	if (error) {
		char digits[8];
		int d = 0;

		for (const char *p = ": error "; *p; p++)
			line[n++] = *p;
		for (error = -error; error > 0 && d < 8; error /= 10)
			digits[d++] = (char)('0' + error % 10);
		while (d > 0)
			line[n++] = digits[--d];
	}
	line[n++] = '\n';
	SYS3(__NR_write, 2, line, n);
	SYS1(__NR_exit_group, status);
	__builtin_unreachable();
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One or two digits per item, exactly sixteen items, CR and LF allowed at the end only. */
static int parse_key(const char *text, long len, unsigned char *key)
{
	long at = 0;

	while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
		len--;
	for (int item = 0; item < KEY_BYTES; item++) {
		int value = 0, digits = 0;

		if (item > 0 && (at >= len || text[at++] != '-'))
			return 0;
		for (; at < len && digits < 2 && hex_digit(text[at]) >= 0; at++, digits++)
			value = value * 16 + hex_digit(text[at]);
		if (digits == 0)
			return 0;
		key[item] = (unsigned char)value;
	}
	return at == len;
}

__attribute__((used, noreturn)) static void init_main(void)
{
	char text[128];
	unsigned char key[KEY_BYTES];
	const unsigned char *given = 0;
	long len = 0, r;
	long fd = SYS4(__NR_openat, AT_FDCWD, "/etc/image_key", O_RDONLY | O_CLOEXEC, 0);

	if (fd >= 0) {
		while (len < (long)sizeof(text)) {
			r = SYS3(__NR_read, fd, text + len, sizeof(text) - len);
			if (r == -EINTR)
				continue;
			if (r < 0)
				fail("init: cannot read /etc/image_key", r, 2);
			if (r == 0)
				break;
			len += r;
		}
		SYS1(__NR_close, fd);
		if (!parse_key(text, len, key))
			fail("init: /etc/image_key does not hold sixteen bytes as xx-xx-...-xx", 0, 3);
		given = key;
	} else if (fd != -ENOENT) {
		fail("init: cannot open /etc/image_key", fd, 2);
	}
	r = SYS2(NR_MOUNT_ROOT_FS, given, 0);
	if (r == -EIO || r == -EINVAL)
		SYS1(__NR_exit_group, 1);
	if (r < 0)
		fail("init: the root file system was not mounted", r, 1);
	SYS1(__NR_exit_group, 0);
	__builtin_unreachable();
}

START(init_main);
