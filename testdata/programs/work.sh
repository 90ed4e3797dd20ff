#!/usr/bin/env bash
# Work for a real bash: pipes, subshells, command substitution, background jobs, many short programs.
set -euo pipefail

total=0
for i in $(seq 1 20); do
    n=$(printf '%s\n' {1..200} | awk -v k="$i" '{ s += $1 * k } END { print s }')
    total=$((total + n))
done
(sleep 0.05; exit 3) &
job=$!
sort -r < <(seq 1 5000) | md5sum
wait "$job" || echo "job ended with $?"
echo "total $total"
