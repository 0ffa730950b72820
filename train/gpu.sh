#!/usr/bin/env bash
# What to run where a CUDA GPU is at hand for 25 minutes: correctness, timings, then what made the shipped weights; resumable.
#
#   train/gpu.sh FACES [OUT]            FACES: folders with faces.csv or face crops, separated by semicolons; OUT: runs/gpu
#   TINY=1 train/gpu.sh drawn:8 OUT     a rehearsal on any CPU in minutes: the same commands at tiny size, shows the machinery only
#
# WEIGHTS (default ../shared/weights) holds mobilefacenet_foamliu.pt and TAESD's two files. MINUTES: all there is, 25. SKIP=1: no
# timings. Two stages: the decoder's finish for DECODER (2) minutes, then adapter and prior together for the rest, both with a rate
# that falls by the clock. Run it again to go on where it stopped. Everything that comes back fits through narrow doors: weights in
# parts of at most 16 MB.
set -euo pipefail
faces=${1:?usage: train/gpu.sh FACES [OUT]}
out=$(realpath -m "${2:-runs/gpu}")
weights=$(realpath -m "${WEIGHTS:-$(dirname "$0")/../../shared/weights}")
absolute() {  # every source that is a path, from the root on
  local whole="" place places
  IFS=';' read -ra places <<< "$1"
  for place in "${places[@]}"; do
    [ ! -e "$place" ] || place=$(realpath "$place")
    whole="$whole${whole:+;}$place"
  done
  echo "$whole"
}
faces=$(absolute "$faces")
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

common=(--data.source "$faces" --log.out "$out/run" --log.tracker none --log.clock true)
decoder=(--config train/configs/starter_decoder.yaml --decoder.steps 100000 --log.minutes "${DECODER:-2}")
joint=(--config train/configs/starter_joint.yaml --joint.steps 100000 --models.vae "$out/run/decoder/vae.safetensors")
if [ -n "${TINY:-}" ]; then
  export ACCELERATE_USE_CPU=1
  small=(--data.size 64 --data.workers 0 --log.save_every 2)
  decoder+=("${small[@]}" --decoder.features random --decoder.steps 3 --decoder.batch 2 --decoder.precision no)
  joint+=("${small[@]}" --network.grid 8 --network.prior_widths "[8, 8, 8]" --joint.features random --joint.identity 0
    --joint.steps 3 --joint.batch 2 --joint.precision no --loss.identity 0)
else
  decoder+=(--models.second_vae "$weights")
  joint+=(--models.second_vae "$weights" --loss.identity_weights "$weights/mobilefacenet_foamliu.pt")
  if [ -z "${SKIP:-}" ]; then
    once correctness "$python" -m benchmarks.gpu --batches 1 --repeats 3 --out "$out/gpu_quick.md"
    once timings "$python" -m benchmarks.gpu --out "$out/gpu.md"
  fi
fi

once decoder "$python" -m train decoder "${common[@]}" "${decoder[@]}"
# What time is left, less two minutes to start and to write things down.
seconds=$(($(left) - 120))
[ "$seconds" -gt 30 ] || seconds=30
once joint "$python" -m train joint "${common[@]}" "${joint[@]}" --log.minutes "$(awk "BEGIN { print $seconds / 60 }")"
"$python" -m train export --checkpoint "$out/run" --stage joint --out "$out" --overwrite
cp "$out/run/decoder/vae.safetensors" "$out/"
for name in vae adapter prior; do
  split --bytes=16000000 --numeric-suffixes "$out/$name.safetensors" "$out/$name.safetensors.part"
done
(cd "$out" && sha256sum ./*.safetensors ./*.safetensors.part* > SHA256SUMS && ls -l)
