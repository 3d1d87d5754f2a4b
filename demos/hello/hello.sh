#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs inside: pipes, files, processes and Python, as anywhere else.
set -eu

echo "pipes:     $(seq 1 1000 | sort -rn | head -n 3 | paste -sd ' ')"

mkdir -p /tmp/words
printf '%s\n' one two three >/tmp/words/list
ln -s list /tmp/words/link
mv /tmp/words/list /tmp/words/moved
ln -sf moved /tmp/words/link
chmod 640 /tmp/words/moved
echo "files:     $(wc -l </tmp/words/link) lines, mode $(stat -c %a /tmp/words/moved)"
rm -r /tmp/words

children=()
for n in 1 2 3 4; do
    (exit "$n") &
    children+=($!)
done
sum=0
for child in "${children[@]}"; do
    status=0
    wait "$child" || status=$?
    sum=$((sum + status))
done
echo "processes: four children, their statuses add up to $sum"
echo "busybox:   $(busybox echo 'an applet says so')"
echo "python:    $(python3 -c '
import json, ssl, sqlite3, hashlib
db = sqlite3.connect("/tmp/demo.db")
db.execute("create table if not exists boots (at text)")
db.execute("insert into boots values (datetime())")
db.commit()
print(json.dumps({"json": "ok", "ssl": ssl.OPENSSL_VERSION.split()[1],
                  "sqlite3": sqlite3.sqlite_version,
                  "sha256": hashlib.sha256(b"serdab").hexdigest()[:16],
                  "boots": db.execute("select count(*) from boots").fetchone()[0]}))
')"
