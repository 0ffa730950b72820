#!/usr/bin/env bash
# What to run where a CUDA GPU is at hand for 25 minutes: correctness, timings, then the best training that fits; resumable.
#
#   train/gpu.sh FACES [OUT]            FACES: folder with faces.csv or face crops; OUT (default runs/gpu) holds all results
#   TINY=1 train/gpu.sh drawn:8 OUT     a rehearsal on any CPU in minutes: the same commands at tiny size, shows the machinery only
#
# Run it again to go on where it stopped. Everything that comes back fits through narrow doors: weights in parts of at most 16 MB.
set -euo pipefail
faces=${1:?usage: train/gpu.sh FACES [OUT]}
out=$(realpath -m "${2:-runs/gpu}")
[ ! -e "$faces" ] || faces=$(realpath "$faces")
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
minutes=${MINUTES:-25}
began=$(date +%s)
mkdir -p "$out"
left() { echo $((minutes * 60 - $(date +%s) + began)); }
once() {  # once NAME COMMAND...: runs it unless an earlier run finished it
  local name=$1
  shift
  if [ -e "$out/$name.done" ]; then echo "== $name: done already"; return; fi
  echo "== $name ($(left) s left)"
  "$@" && touch "$out/$name.done"
}

common=(--data.source "$faces" --data.pairs "$out/pairs" --log.out "$out/run" --log.tracker none)
if [ -n "${TINY:-}" ]; then
  export ACCELERATE_USE_CPU=1
  small=(--data.size 64 --network.grid 8 --data.workers 0 --data.window 2 --data.around 4 --pairs.versions 1 --pairs.precision no)
  pairs=("${small[@]}" --pairs.shard 4)
  critic=("${small[@]}" --critic.features random --critic.identity 0 --critic.steps 4 --critic.batch 2 --critic.precision no
    --network.prior_widths "[8, 8, 8]" --log.save_every 2 --models.adapter none)
  config=train/configs/starter_critic.yaml
  pairs+=(--pairs.aligned false)
else
  config=train/configs/starter_critic.yaml
  pairs=(--pairs.rounds 4)
  critic=(--critic.batch 32 --critic.steps 20000 --critic.tf32 true --data.workers 8 --critic.identity 0 --log.save_every 500)
  once correctness "$python" -m benchmarks.gpu --batches 1 --repeats 3 --out "$out/gpu_quick.md"
  once timings "$python" -m benchmarks.gpu --out "$out/gpu.md"
fi

once pairs "$python" -m train pairs --config "$config" "${common[@]}" "${pairs[@]}"
# The training takes what time is left, less two minutes to write things down; a checkpoint every save_every steps stays behind.
seconds=$(($(left) - 120))
[ "$seconds" -gt 10 ] || seconds=10
echo "== critic: $seconds s"
timeout --signal=TERM "$seconds" "$python" -m train critic --config "$config" "${common[@]}" "${critic[@]}" || true
"$python" -m train export --checkpoint "$out/run" --stage critic --out "$out"
split --bytes=16000000 --numeric-suffixes "$out/prior.safetensors" "$out/prior.safetensors.part"
(cd "$out" && sha256sum prior.safetensors prior.safetensors.part* > SHA256SUMS && ls -l)
