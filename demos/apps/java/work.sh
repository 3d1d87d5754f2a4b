#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. /app/lib.sh
exec /opt/java/bin/java -Xmx256m /app/Work.java
