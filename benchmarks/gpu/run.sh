#!/usr/bin/env bash
# Every check and benchmark that needs an NVIDIA GPU, in one go: under 8 minutes. Leaves JSON in benchmarks/results/, with
# device, driver, versions and commit.
#   benchmarks/gpu/run.sh [FOLDER FOR THE JSON]
# Exit status: 0 all held, 1 something failed or missed its bar, 2 no GPU here.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
results=${1:-benchmarks/results}
mkdir -p "$results"

if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo "run.sh: no NVIDIA GPU on this machine (nvidia-smi shows none); nothing was run" >&2
  exit 2
fi
nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader
failed=()
# The limits of all steps together are below eight minutes.
step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$2
  shift 2
  printf '\n== %s (%s s)\n' "$name" "$SECONDS"
  timeout "$limit" "$@" || failed+=("$name: exit status $?")
}

# The CUDA and Triton scans, the plugin's enqueue through the conformance harness, and each engine against the CPU's.
step "tests marked gpu" 170 python -m pytest -m gpu -q -p no:cacheprovider
if command -v compute-sanitizer >/dev/null; then
  # One case in each form suffices for the sanitizer, which is slow.
  step "memory accesses of the scan" 80 compute-sanitizer --error-exitcode 9 \
    python -m pytest -q -p no:cacheprovider --timeout 75 tests/kernels/test_cuda_gpu.py -k positions_out_of_range
else
  echo "compute-sanitizer is not here: memory accesses were not checked"
fi
step "the scan beside mamba_ssm and the device's limits" 110 \
  python benchmarks/gpu/scan_gpu.py --check --json "$results/scan_gpu.json"
step "a training step beside mamba_ssm" 110 python benchmarks/gpu/train_gpu.py --check --json "$results/train_gpu.json"

printf '\n== %s s\n' "$SECONDS"
for line in "${failed[@]}"; do echo "failed: $line"; done
[ ${#failed[@]} = 0 ]
