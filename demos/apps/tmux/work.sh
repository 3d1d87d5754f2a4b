#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# tmux: a server on a socket, terminals of its own, keys in, a screen out, windows resized.
. /app/lib.sh
export TERM=screen LC_ALL=C.UTF-8
tmux -S /tmp/tmux new-session -d -x 80 -y 24 -s work /bin/sh
shows() { tmux -S /tmp/tmux capture-pane -p -t work | grep -q "$1"; }
tmux -S /tmp/tmux send-keys -t work 'echo $((6 * 7))-answer; cat' Enter
until_true "the answer" shows '^42-answer'
tmux -S /tmp/tmux send-keys -t work 'typed' Enter
until_true "an echo" shows '^typed'
tmux -S /tmp/tmux send-keys -t work C-c
tmux -S /tmp/tmux send-keys -t work 'echo status-$?' Enter
until_true "Ctrl-C" shows '^status-130'
tmux -S /tmp/tmux split-window -t work /bin/sh
check panes 2 "$(tmux -S /tmp/tmux list-panes -t work | wc -l)"
tmux -S /tmp/tmux kill-server
until_true "the end" sh -c '! tmux -S /tmp/tmux list-sessions'
