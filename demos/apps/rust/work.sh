#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. /app/lib.sh
rm -rf /root/work
exec /app/work
