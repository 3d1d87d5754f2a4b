#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. /app/lib.sh
exec python3 /app/work.py
