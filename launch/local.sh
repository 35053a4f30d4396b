#!/usr/bin/env bash
# Several processes of one run on this host, GPU i for process i:
#
#   launch/local.sh 2 python -m mmesid_jax.train --config=configs/beauty.py \
#     --config.data.dir=DIR --workdir=runs/two
#
# Ctrl-C or SIGTERM lets all save and stop at one step (status 75). A process that is lost ends the
# others, and the last line says which it was; RESTARTS=3 starts all again, so often, from the last
# checkpoint.
set -u
processes=$1
shift
restarts=${RESTARTS:-0}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# Starts all, waits for all; the status of the first that did not succeed.
run() {
  local pids=() gpus=() status=0 pid ended index
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((processes - 1)))}"
  JAX_COORDINATOR_ADDRESS=localhost:$(free_port)
  export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$processes
  for ((index = 0; index < processes; index++)); do
    CUDA_VISIBLE_DEVICES=${gpus[index]:-} JAX_PROCESS_ID=$index "$@" &
    pids[index]=$!
  done
  trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
  while ((${#pids[@]})); do
    wait -n -p pid "${pids[@]}"
    ended=$?
    if [[ -z ${pid:-} ]]; then
      ((ended == 127)) || continue # a signal woke us up
      for pid in "${pids[@]}"; do # gone before we waited for it: bash remembers how
        kill -0 "$pid" 2>/dev/null || break
      done
      wait "$pid"
      ended=$?
    fi
    for index in "${!pids[@]}"; do
      [[ ${pids[index]} == "$pid" ]] && break
    done
    unset "pids[index]"
    if ((ended != 0 && status == 0)); then
      status=$ended
      if ((ended != 75)); then
        sleep 2 # for what the others have to say
        echo "process $index of $processes was lost: status $ended; ending the others" >&2
        kill -KILL "${pids[@]}" 2>/dev/null
      fi
    fi
  done
  trap - TERM INT
  return $status
}

while true; do
  run "$@"
  status=$?
  # 2: a mistake in the command; 3: a loss that is not finite; 75: asked to stop. None is helped.
  if ((status == 0 || status == 2 || status == 3 || status == 75 || restarts-- <= 0)); then
    exit $status
  fi
  echo "starting again from the last checkpoint, $restarts more times" >&2
done
