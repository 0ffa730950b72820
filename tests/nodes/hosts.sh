#!/usr/bin/env bash
# hosts.sh FOLDER: get the ComfyUI versions that tests/nodes are run on, each with an environment of its own, and print the
# variables for the tests. Needs git, Python 3.10 or newer and the network once; about 4 GB without CUDA.
#   eval "$(tests/nodes/hosts.sh ~/hosts)" && "${COMFYUI_PYTHON%%:*}" -m pytest tests/nodes
# TORCH_SITE=/path/to/site-packages shares an installed torch and torchvision instead of fetching them twice.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")/../.." && pwd)

# name, repository, commit: the oldest host that is promised to work, and the newest that was tried.
hosts="
0.3.64 https://github.com/Comfy-Org/ComfyUI a125cd84
0.33.0 https://github.com/yzkee/ComfyUI 783545f6
"
roots= pythons=
while read -r name repository commit; do
  [ -n "$name" ] || continue
  root=$folder/ComfyUI-$name python=$folder/venv-$name/bin/python
  if [ ! -d "$root" ]; then
    git clone --quiet --filter=blob:none "$repository" "$root" >&2
    git -C "$root" checkout --quiet "$commit" >&2
  fi
  if [ ! -x "$python" ]; then
    "${PYTHON:-python3}" -m venv "$folder/venv-$name" >&2
    site=$("$python" -c 'import site; print(site.getsitepackages()[0])')
    if [ -n "${TORCH_SITE:-}" ]; then
      echo "$TORCH_SITE" >"$site/zz_torch.pth"
    else
      "$python" -m pip install --quiet torch torchvision --index-url https://download.pytorch.org/whl/cpu >&2
    fi
    # Image work calls nothing of torchaudio, but ComfyUI imports it: a stand-in will do.
    mkdir -p "$site/torchaudio" && cp "$here/tests/nodes/torchaudio_stub.py" "$site/torchaudio/__init__.py"
    grep -vE '^(torch|torchvision|torchaudio)$' "$root/requirements.txt" >"$folder/requirements-$name.txt"
    "$python" -m pip install --quiet -r "$folder/requirements-$name.txt" pytest hypothesis scikit-image >&2
  fi
  roots=${roots:+$roots:}$root pythons=${pythons:+$pythons:}$python
done <<<"$hosts"
echo "export COMFYUI_ROOT=$roots"
echo "export COMFYUI_PYTHON=$pythons"
