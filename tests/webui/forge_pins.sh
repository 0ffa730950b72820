#!/usr/bin/env bash
# LAFR on Forge's pinned packages (numpy 1.26, Pillow 9.5, diffusers 0.31, einops 0.4.1, safetensors 0.4.2, Python 3.10):
# the library's and the webui's tests, then a fresh clone as an extension inside Forge's own code.
#
#   FORGE_ROOT=~/stable-diffusion-webui-forge tests/webui/forge_pins.sh VENV [PYTEST ARGUMENTS]
#
# VENV is made when it is not there (Python 3.10 and about 8 GB: PyPI's torch brings CUDA along). FORGE_ROOT needs Forge's own
# repositories/ (its launcher clones them). Not part of CI for its size; run it before a release.
set -euo pipefail
venv=${1:?usage: FORGE_ROOT=... tests/webui/forge_pins.sh VENV [pytest arguments]}
shift
forge=$(cd "${FORGE_ROOT:?set FORGE_ROOT to a stable-diffusion-webui-forge checkout}" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)

if [ ! -x "$venv/bin/python" ]; then
    "${PYTHON310:-python3.10}" -m venv "$venv"
    grep -v '^torch$' "$forge/requirements_versions.txt" >"$venv/pins.txt"
    "$venv/bin/pip" install -q torch==2.3.1 torchvision==0.18.1 -r "$venv/pins.txt"
    "$venv/bin/pip" install -q pytest hypothesis
fi
python=$(cd "$venv/bin" && pwd)/python

echo "== pins"
"$python" - "$forge/requirements_versions.txt" <<'PY'
import importlib.metadata as metadata, re, sys
wanted = dict(re.findall(r"^(numpy|Pillow|diffusers|einops|safetensors|gradio|pydantic)==(\S+)", open(sys.argv[1]).read(), re.M))
found = {name: metadata.version(name) for name in wanted}
print(sys.version.split()[0], "torch", metadata.version("torch"), found)
assert found == wanted, f"expected {wanted}"
PY

echo "== a fresh clone as an extension, its installer run as Forge runs it"
extension=$forge/extensions/lafr-pins-check
trap 'rm -rf "$extension"' EXIT
rm -rf "$extension"
git clone -q "$root" "$extension"
before=$("$python" -m pip freeze)
(cd "$extension" && PYTHONPATH=$forge "$python" install.py)
[ "$before" = "$("$python" -m pip freeze)" ] || { echo "install.py changed the host's packages"; exit 1; }
echo "install.py changed no package"

echo "== tests"
(cd "$root" && FORGE_ROOT=$forge "$python" -m pytest -q -p no:cacheprovider -p no:warnings "${@:-tests/webui}")

echo "== inside Forge"
(cd "$forge" && HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False "$python" "$root/tests/webui/forge_live.py" --always-cpu --api)
