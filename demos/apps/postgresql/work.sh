#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# PostgreSQL refuses to be root: everything else is done by a user of the instance.
. /app/lib.sh
rm -rf /data && mkdir -p /data
chown 70:70 /data
exec busybox su server -s /bin/sh -c /app/server.sh
