#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# git: commits, a merge, packing, a clone by hard links, a check of every object.
. /app/lib.sh
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
rm -rf /root/work /root/clone
git init -q -b main /root/work
cd /root/work
for n in $(seq 200); do seq "$n" >"file$n"; done
git add . && git commit -qm first
git checkout -qb other && echo other >>file1 && git commit -qam other
git checkout -q main && echo main >>file200 && git commit -qam main
git merge -q --no-edit other
check commits 4 "$(git rev-list --count HEAD)"
git gc -q --prune=now
check packs 1 "$(find .git/objects/pack -name '*.pack' | wc -l)"
git fsck --full --strict
git clone -q /root/work /root/clone
check clone "$(git rev-parse HEAD)" "$(git -C /root/clone rev-parse HEAD)"
check status "" "$(git -C /root/clone status --porcelain)"
check content "$(seq 200 | sha256sum)" "$(git show HEAD^1^:file200 | sha256sum)"
