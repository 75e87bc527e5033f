#!/usr/bin/env bash
# Several processes on this machine: the rehearsal of a job over several hosts.
#   bash launch/local.sh PROCESSES DEVICES PROGRAM [arguments]
#   bash launch/local.sh 2 4 pretrain --config=configs/pretrain_small.py --workdir=RUN --config.data=DATA
# Each process has DEVICES fake CPU devices; 0 leaves it its real ones, of which each takes its share
# (CUDA_VISIBLE_DEVICES). DRY_RUN=1 prints what would be run. SIGTERM reaches every process.
source "$(dirname "$0")/setup.sh"

if [ $# -lt 3 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
processes=$1 devices=$2 program=$3
shift 3
port=${PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}

pids=()
for ((process = 0; process < processes; process++)); do
  environment=("CRYJAX_COORDINATOR=127.0.0.1:$port" "CRYJAX_PROCESSES=$processes" "CRYJAX_PROCESS=$process")
  if [ "$devices" -gt 0 ]; then
    environment+=("JAX_PLATFORMS=cpu" "XLA_FLAGS=--xla_force_host_platform_device_count=$devices")
  else
    environment+=("CUDA_VISIBLE_DEVICES=$process")
  fi
  command=(env "${environment[@]}" python -m "cryjax.$program" "$@")
  if [ -n "${DRY_RUN:-}" ]; then
    echo "${command[*]}"
    continue
  fi
  "${command[@]}" &
  pids+=($!)
done

trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
status=0
for pid in "${pids[@]}"; do
  # A signal interrupts `wait`: ask again until the process is gone.
  while :; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  [ "$code" -eq 0 ] || status=$code
done
exit "$status"
