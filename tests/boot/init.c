/* SPDX-License-Identifier: Apache-2.0 */
/* An init that does with MountRootFS what the file /etc/script says, one act per word. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct config {
	unsigned long len;
	const char *upper, *lower, *entry, *source, *target;
	const char **env;
	const unsigned char *mac;
	unsigned long unknown;
};

static unsigned char key[16];
static unsigned char mac[32];
static int has_key;

static long call(const void *k, const void *c)
{
	errno = 0;
	return syscall(363, k, c);
}

static void say(const char *what, long r)
{
	dprintf(1, "%s %s\n", what, r < 0 ? strerrorname_np(errno) : "ok");
}

static void load_key(void)
{
	char text[64] = "";
	int fd = open("/etc/image_key", O_RDONLY);

	if (fd < 0)
		return;
	if (read(fd, text, sizeof(text) - 1) < 47)
		return;
	for (int i = 0; i < 16; i++)
		key[i] = (unsigned char)strtol(text + 3 * i, 0, 16);
	has_key = 1;
}

int main(void)
{
	static char words[4096];
	static const char *env[] = {"OCCLUM=NO", "TEST=1234", 0};
	struct config c = {56, 0, 0, 0, 0, 0, 0, 0, 0};
	int fd = open("/etc/script", O_RDONLY);

	if (fd < 0 || read(fd, words, sizeof(words) - 1) < 0)
		return 90;
	load_key();
	for (char *w = strtok(words, " \n"); w; w = strtok(0, " \n")) {
		if (!strcmp(w, "null"))
			say(w, call(has_key ? key : 0, 0));
		else if (!strcmp(w, "config"))
			say(w, call(has_key ? key : 0, &c));
		else if (!strcmp(w, "short")) {
			c.len = 48;
			say(w, call(0, &c));
			c.len = 56;
		} else if (!strcmp(w, "long")) {
			c.len = 72;
			c.unknown = 1;
			say(w, call(0, &c));
			c.len = 56;
			c.unknown = 0;
		} else if (!strcmp(w, "badkey"))
			say(w, call((void *)8, 0));
		else if (!strcmp(w, "badconfig"))
			say(w, call(0, (void *)8));
		else if (!strcmp(w, "badstring")) {
			c.entry = (void *)8;
			say(w, call(0, &c));
			c.entry = 0;
		} else if (!strcmp(w, "wrongkey")) {
			unsigned char wrong[16] = "0123456789abcdef";
			say(w, call(wrong, 0));
		} else if (!strcmp(w, "nokey"))
			say(w, call(0, 0));
		else if (!strcmp(w, "env"))
			c.env = env;
		else if (!strncmp(w, "entry=", 6))
			c.entry = w + 6;
		else if (!strncmp(w, "source=", 7))
			c.source = w + 7;
		else if (!strncmp(w, "target=", 7))
			c.target = w + 7;
		else if (!strncmp(w, "upper=", 6))
			c.upper = w + 6;
		else if (!strncmp(w, "mac=", 4)) {
			for (int i = 0; i < 32; i++)
				sscanf(w + 4 + 2 * i, "%2hhx", &mac[i]);
			c.mac = mac;
			c.len = 64;
		} else if (!strncmp(w, "lower=", 6))
			c.lower = w + 6;
		else if (!strcmp(w, "secret")) {
			fd = open("/root/secret", O_WRONLY | O_CREAT | O_TRUNC, 0600);
			say(w, fd < 0 ? -1 : write(fd, "from init\n", 10));
			close(fd);
		} else if (!strncmp(w, "exit=", 5))
			return atoi(w + 5);
	}
	return 0;
}
