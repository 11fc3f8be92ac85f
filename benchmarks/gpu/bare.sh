#!/usr/bin/env bash
# run.sh on a machine that has PyTorch, a C++ compiler, nvcc, ninja, scikit-build-core, pytest-timeout and einops (the peer's), but
# neither edgemamba nor a network: installs this checkout and what lies in a folder that was carried there, then runs everything.
# What was installed stays for the next call.
#   benchmarks/gpu/bare.sh FOLDER --prepare-only      # a few minutes, most of them the peer's
#   benchmarks/gpu/bare.sh FOLDER [FOLDER FOR THE JSON]
# FOLDER, filled where there is a network:
#   pip download --no-deps -d FOLDER --only-binary=:all: --python-version 3.12 --platform manylinux_2_17_x86_64 \
#     pydantic pydantic-core==WHAT-IT-NEEDS annotated-types typing-inspection
#   pip download --no-deps -d FOLDER --no-binary :all: --no-build-isolation mamba-ssm      # the peer; without it no ratios
#   cp -r ~/.cache/edgemamba-tests/kernel_lens* FOLDER/cache/edgemamba-tests/              # TensorRT's headers, for the plugin
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
carried=$(cd "${1:?the folder that was carried here}" && pwd) || exit 2
site=${TMPDIR:-/tmp}/edgemamba-bare
mkdir -p "$site/bin"
shopt -s nullglob
wheels=("$carried"/*.whl)
archives=("$carried"/mamba_ssm-*.tar.gz)
command -v python >/dev/null || ln -sf "$(command -v python3)" "$site/bin/python"
export PATH=$site/bin:$PATH PYTHONPATH=$site/peer:$site/packages${PYTHONPATH:+:$PYTHONPATH}
if [ -d "$carried/cache" ]; then export XDG_CACHE_HOME=$carried/cache; fi

if ! [ -e "$site/installed" ]; then
  pip="python -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir"
  if [ ${#wheels[@]} -gt 0 ]; then $pip --target "$site/packages" "${wheels[@]}" || exit 2; fi
  $pip --no-build-isolation --editable . && touch "$site/installed" || exit 2
fi
if [ ${#archives[@]} -gt 0 ] && ! [ -e "$site/peer/built" ]; then
  if timeout 420 python benchmarks/gpu/peer.py "${archives[0]}" "$site/peer"; then
    touch "$site/peer/built"
  else
    echo "bare.sh: the peer was not built; its ratios will be missing" >&2
    rm -rf "$site/peer"
  fi
fi
printf 'prepared in %s s\n' "$SECONDS"
if [ "${2:-}" = --prepare-only ]; then exit 0; fi
exec bash benchmarks/gpu/run.sh "${2:-benchmarks/results}"
