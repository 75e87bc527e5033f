#!/usr/bin/env bash
# Runs several processes on this machine, to rehearse a job over several hosts.
#   bash launch/local.sh PROCESSES DEVICES PROGRAM [arguments]
#   bash launch/local.sh 2 4 pretrain --config=configs/pretrain_small.py --workdir=RUN \
#     --config.data=DATA
# Each process has DEVICES fake CPU devices; with DEVICES 0, its share of this machine's GPUs.
# SIGTERM, SIGHUP or Ctrl-C makes all of them save and stop; the script exits with their status:
# 75, 'saved, start me again'. If one fails, the others are stopped, and its status is the script's.
# DRY_RUN=1 prints the commands and runs nothing; PORT sets the coordinator's port.
set -euo pipefail

refuse() {
  echo "local.sh: error: $1" >&2
  exit 2
}

[ $# -ge 3 ] || refuse "usage: bash launch/local.sh PROCESSES DEVICES PROGRAM [arguments]"
processes=$1 devices=$2 program=$3
shift 3
[[ $processes =~ ^[1-9][0-9]{0,3}$ ]] || refuse "PROCESSES=$processes is not a number from 1 up"
[[ $devices =~ ^(0|[1-9][0-9]{0,3})$ ]] || refuse "DEVICES=$devices is not a number from 0 up"
[ -f "$(dirname "$0")/../cryjax/$program.py" ] || refuse "PROGRAM=$program: no cryjax/$program.py"
[[ ${PORT:-1} =~ ^[1-9][0-9]{0,4}$ ]] || refuse "PORT=$PORT is not a number"

gpus=() share=0
if [ "$devices" -eq 0 ]; then
  all=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null |
    paste -sd , || true)}
  IFS=, read -ra gpus <<<"$all"
  share=$((${#gpus[@]} / processes))
  [ "$share" -gt 0 ] && [ $((share * processes)) -eq ${#gpus[@]} ] ||
    refuse "DEVICES=0 splits this machine's GPUs evenly: not ${#gpus[@]} among $processes processes"
fi

port=${PORT:-FREE_PORT}
if [ -z "${DRY_RUN:-}" ]; then
  source "$(dirname "$0")/setup.sh"
  free='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
  port=${PORT:-$(python -c "$free")}
fi

told=
trap 'told=yes' TERM INT HUP

pids=()
for ((process = 0; process < processes; process++)); do
  environment=("CRYJAX_COORDINATOR=127.0.0.1:$port" "CRYJAX_PROCESSES=$processes")
  environment+=("CRYJAX_PROCESS=$process")
  if [ "$devices" -gt 0 ]; then
    flag=--xla_force_host_platform_device_count=$devices
    environment+=("JAX_PLATFORMS=cpu" "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$flag")
  else
    mine=("${gpus[@]:process * share:share}")
    environment+=("CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${mine[*]}")")
  fi
  command=(env "${environment[@]}" python -m "cryjax.$program" "$@")
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${command[@]}"
    echo
  else
    # Each leads its own process group, so that Ctrl-C reaches only this script: Ctrl-C would end
    # each process at once, by itself, whereas SIGTERM lets them agree on a step and save.
    set -m
    "${command[@]}" </dev/null &
    pids+=($!)
    set +m
    echo "local.sh: process $process of $processes has pid $!" >&2
  fi
done
[ -z "${DRY_RUN:-}" ] || exit 0

# Polls every 0.2 s: bash can wait for the first of several only since 4.3; macOS has 3.2.
status=0 grace=0
while [ ${#pids[@]} -gt 0 ]; do
  sleep 0.2 || true
  running=() before=$status
  for process in "${!pids[@]}"; do
    pid=${pids[process]}
    if kill -0 "$pid" 2>/dev/null; then
      running[process]=$pid
      continue
    fi
    code=0
    wait "$pid" 2>/dev/null || code=$?
    # The status of those that this script killed says nothing.
    [ "$code" -ne 0 ] && [ "$grace" -ge 0 ] || continue
    [ "$code" -eq 75 ] ||
      echo "local.sh: error: process $process of $processes ended with status $code" >&2
    # The first failure is the cause; of several since the last poll, a process that was killed.
    [ "$before" -eq 0 ] || [ "$before" -eq 75 ] || continue
    if [ "$status" -eq 0 ] || [ "$status" -eq 75 ] || [ "$code" -gt 128 ]; then status=$code; fi
  done
  pids=()
  for process in "${!running[@]}"; do pids[process]=${running[process]}; done
  [ ${#pids[@]} -gt 0 ] || break

  if [ -n "$told" ]; then
    told=
    kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
  # Without the failed one the others wait for ever. They get 5 s to report what they saw.
  if [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && [ $((grace += 1)) -gt 25 ]; then
    echo "local.sh: stopping the other processes: ${!pids[*]}" >&2
    for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
    grace=-1000
  fi
done
exit "$status"
