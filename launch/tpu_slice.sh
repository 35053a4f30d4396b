#!/usr/bin/env bash
# A TPU slice: asks for it, waits, installs, and trains on all of its hosts, until done.
#
#   NAME=mmesid ZONE=us-east5-b TYPE=v5p-8 SHARED=FILESTORE_IP:/share SOURCE=GIT_URL \
#     launch/tpu_slice.sh --config=configs/beauty.py --config.data.dir=/shared/DIR --workdir=/shared/DIR
#
# SOURCE is cloned to every host; SHARED is mounted there as /shared and holds data and workdir. On a spot slice (SPOT=1) a
# reclaimed host ends the run: the slice is asked for again, and the run goes on from its last
# checkpoint, TRIES (20) times at the most. A queued resource of that name is replaced. The queued resource is left as it is at the end; the last line says how to delete it.
set -eu
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${SHARED:?}" "${SOURCE:?}"
version=${VERSION:-v2-alpha-tpuv5} # the image of TYPE

tpu() { gcloud compute tpus "$@" --zone="$ZONE"; }

everywhere() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }

ask() {
  local state=
  tpu queued-resources delete "$NAME" --force --quiet 2>/dev/null || true
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$version" ${SPOT:+--spot}
  until [[ $state == ACTIVE ]]; do
    sleep 30
    state=$(tpu queued-resources describe "$NAME" --format='value(state.state)')
    [[ $state == FAILED ]] && echo "$NAME: the queued resource failed" >&2 && exit 1
  done
  everywhere "sudo mkdir -p /shared && sudo mount $SHARED /shared
    git clone --quiet $SOURCE mmesid_jax && cd mmesid_jax && python3 -m venv .venv
    .venv/bin/pip install --quiet -e '.[tpu]'"
}

arguments=$(printf '%q ' "$@")
ask
for ((tries = ${TRIES:-20}; ; tries--)); do
  status=0
  everywhere "cd mmesid_jax && JAX_NUM_PROCESSES=auto \
    .venv/bin/python -m mmesid_jax.train $arguments" || status=$?
  case $status in
    0) break ;;
    2 | 3) exit "$status" ;; # a mistake in the command, or a loss that is not finite
  esac
  ((tries > 0)) || exit "$status"
  sleep 30
  if [[ $(tpu tpu-vm describe "$NAME" --format='value(state)') != READY ]]; then
    ask
  fi
done
echo "done; gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force"
