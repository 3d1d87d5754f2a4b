#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ffmpeg: a film and its sound made, written (with seeks back to its head), read, and the same frames found.
. /app/lib.sh
cd /root
sources="-f lavfi -i testsrc=duration=2:size=320x240:rate=25 -f lavfi -i sine=duration=2"
# shellcheck disable=SC2086 # a list of options
ffmpeg -nostdin -loglevel error -y $sources -c:v ffv1 -c:a flac lossless.mkv
# shellcheck disable=SC2086
ffmpeg -nostdin -loglevel error -y $sources -map 0:v -f framemd5 made
ffmpeg -nostdin -loglevel error -i lossless.mkv -map 0:v -pix_fmt rgb24 -f framemd5 -y read
frames() { grep -v '^#' "$1" | wc -l; }
check frames "$(frames made)" "$(frames read)"
ffmpeg -nostdin -loglevel error -y -i lossless.mkv -c:v mpeg4 -c:a aac -movflags +faststart film.mp4
check film "50 frames" "$(ffmpeg -nostdin -loglevel error -i film.mp4 -map 0:v -f framemd5 - | grep -vc '^#') frames"
