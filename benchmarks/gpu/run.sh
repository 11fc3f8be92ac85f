#!/usr/bin/env bash
# Every check and benchmark that needs an NVIDIA GPU, in one go: under 8 minutes. Leaves JSON in benchmarks/results/.
#   benchmarks/gpu/run.sh [FOLDER FOR THE JSON]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
results=${1:-benchmarks/results}
mkdir -p "$results"
failed=0

echo "== tests marked gpu"
timeout 240 python -m pytest -m gpu -q -p no:cacheprovider || failed=1

if command -v compute-sanitizer >/dev/null; then
  echo "== memory accesses of the scan"
  # One case in each form suffices for the sanitizer, which is slow.
  timeout 90 compute-sanitizer --error-exitcode 9 python -m pytest -q -p no:cacheprovider --timeout 80 \
    tests/kernels/test_cuda_gpu.py -k "positions_out_of_range" || failed=1
fi

echo "== the scan beside mamba_ssm and the device's limits"
timeout 120 python benchmarks/gpu/scan_gpu.py --check --json "$results/scan_gpu.json" || failed=1
exit $failed
