#!/usr/bin/env bash
# run.sh on a machine that has PyTorch, a C++ compiler and nvcc, but neither edgemamba nor a network: installs this checkout and
# what lies in a folder beside it (wheels, and mamba_ssm's source archive for the peer), then runs everything.
#   benchmarks/gpu/bare.sh FOLDER [FOLDER FOR THE JSON]
# To fill FOLDER where there is a network:
#   pip download --no-deps -d FOLDER --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 \
#     pydantic pydantic-core==VERSION annotated-types typing-inspection
#   pip download --no-deps -d FOLDER --no-binary :all: --no-build-isolation mamba-ssm
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
carried=$(cd "${1:?the folder with the wheels}" && pwd) || exit 2
site=$(mktemp -d)
shopt -s nullglob
wheels=("$carried"/*.whl)
archives=("$carried"/mamba_ssm-*.tar.gz)
pip="python -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir"
command -v python >/dev/null || { mkdir "$site/bin" && ln -s "$(command -v python3)" "$site/bin/python" && PATH=$site/bin:$PATH; }
if [ ${#wheels[@]} -gt 0 ]; then $pip --target "$site" "${wheels[@]}" || exit 2; fi
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
$pip --no-build-isolation --editable . || exit 2
if [ ${#archives[@]} -gt 0 ]; then
  # Without the peer the figures still tell how far the scan is from the device's limits.
  if timeout 400 python benchmarks/gpu/peer.py "${archives[0]}" "$site/peer"; then
    export PYTHONPATH=$site/peer:$PYTHONPATH
  else
    echo "bare.sh: the peer was not built; its ratios will be missing" >&2
  fi
fi
printf 'prepared in %s s\n' "$SECONDS"
exec bash benchmarks/gpu/run.sh "${2:-benchmarks/results}"
