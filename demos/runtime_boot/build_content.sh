#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Generates a root FS in one instance and makes another that boots it. Run it in an empty directory,
# with `occlum` and `copy_bom` in PATH: links to serdab, or the programs they are named after.
#
#   build_content.sh        the init in C
#   build_content.sh python the init in Python
set -eu
DEMO_DIR=$(cd "$(dirname "$0")" && pwd)
WORK_DIR=$PWD
KEY=c7-32-b3-ed-44-df-ec-7b-25-2d-9a-32-38-8d-58-61
export DEMO_DIR WORK_DIR
: "${CC:=gcc}"

compile() {
	"$CC" -static -O1 -Wall "$@"
}

if [ ! -d bash_instance ]; then
	# 1. A bash instance, whose content the image is made of.
	occlum new bash_instance
	(cd bash_instance && copy_bom -f "$DEMO_DIR/bash.yaml" --root image && occlum build)

	# 2. The generator: mounts an empty sefs, copies the content in, unmounts.
	compile -o gen_rootfs "$DEMO_DIR/gen_rootfs.c"
	occlum new gen_rootfs_instance
	(
		cd gen_rootfs_instance
		copy_bom -f "$DEMO_DIR/gen_rootfs.yaml" --root image
		occlum gen-image-key "$WORK_DIR/gen.key"
		occlum build --image-key "$WORK_DIR/gen.key"
		mkdir -p mnt_unionfs/lower mnt_unionfs/upper
		occlum run --image-key "$WORK_DIR/gen.key" /bin/gen_rootfs "$KEY" ./mnt_unionfs/lower /content
	)
fi

# 3. The template, with an init of its own.
rm -rf boot_instance
occlum new boot_instance
cd boot_instance
copy_bom -f "$DEMO_DIR/boot_template.yaml" --root image
rm -f initfs/bin/init
if [ "${1:-c}" = python ]; then
	eval "$(python3 "$DEMO_DIR/find_python.py")"
	copy_bom -f "$DEMO_DIR/init_python.yaml" --root initfs
else
	compile ${INIT_FLAGS:-} -o "$WORK_DIR/init" "$DEMO_DIR/init.c"
	copy_bom -f "$DEMO_DIR/init.yaml" --root initfs
fi
occlum build
