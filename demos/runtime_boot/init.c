/* SPDX-License-Identifier: Apache-2.0 */
/* An init that boots a root FS generated elsewhere: MountRootFS (363) with all seven members.
 *
 * A real one would get its key from a key service, after attestation; here it is built in. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOUNT_ROOT_FS 363

struct user_rootfs_config {
	size_t len;
	const char *upper_layer_path;
	const char *lower_layer_path;
	const char *entry_point;
	const char *hostfs_source;
	const char *hostfs_target;
	const char *const *envp;
};

#ifndef KEY
#define KEY 0xc7, 0x32, 0xb3, 0xed, 0x44, 0xdf, 0xec, 0x7b, \
	    0x25, 0x2d, 0x9a, 0x32, 0x38, 0x8d, 0x58, 0x61
#endif

int main(void)
{
	static const unsigned char key[16] = {KEY};
	static const char *const envp[] = {"OCCLUM=NO", "TEST=1234", "TEST2=4567", NULL};
	static const struct user_rootfs_config config = {
		.len = sizeof(config),
		.upper_layer_path = "../gen_rootfs_instance/mnt_unionfs/upper",
		.lower_layer_path = "../gen_rootfs_instance/mnt_unionfs/lower",
		.entry_point = "/bin",
		.hostfs_source = "/tmp",
		.hostfs_target = "/host",
		.envp = envp,
	};

	if (syscall(MOUNT_ROOT_FS, key, &config) < 0) {
		fprintf(stderr, "init: MountRootFS: %s\n", strerror(errno));
		return 1;
	}
	return 0;
}
