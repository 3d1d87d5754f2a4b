#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
. /app/lib.sh
exec node /app/work.js
