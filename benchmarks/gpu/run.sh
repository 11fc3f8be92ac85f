#!/usr/bin/env bash
# Every check and benchmark that needs an NVIDIA GPU, in one go: under 8 minutes. Leaves JSON in benchmarks/results/, with
# device, driver, versions and commit (run.json: also what each step came to).
#   benchmarks/gpu/run.sh [FOLDER FOR THE JSON]
# edgemamba must be installed; mamba_ssm, where it is, is the peer (peer.py builds it). $COMMIT: what runs, where there is no git.
# Exit status: 0 all held, 1 something failed or missed its bar, 2 no GPU here.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
results=${1:-benchmarks/results}
mkdir -p "$results" || exit 2

gpus=$(nvidia-smi -L 2>/dev/null)
if [[ $gpus != GPU* ]]; then
  echo "run.sh: no NVIDIA GPU on this machine (nvidia-smi shows none); nothing was run" >&2
  exit 2
fi
echo "$gpus"
failed=()
steps=()
# A step that fails, or outlasts its limit, ends nothing but itself. The limits together are below eight minutes.
step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 begun=$SECONDS status=0
  shift 2
  printf '\n== %s (%s s)\n' "$name" "$SECONDS"
  timeout --kill-after=5 "$limit" "$@" || status=$?
  [ "$status" = 0 ] || failed+=("$name: exit status $status$([ "$status" = 124 ] && echo " (more than $limit s)")")
  steps+=("$name" "$status" "$((SECONDS - begun))")
}

# The CUDA and Triton scans, the plugin's enqueue through the conformance harness, and each engine against the CPU's. Only their
# files are collected: the others may need packages that this machine has not.
mapfile -t files < <(grep -rlE 'mark\.gpu\b' tests --include='test_*.py' | sort)
step "tests marked gpu" 170 python -m pytest -m gpu -q -rs -p no:cacheprovider "${files[@]}"
if command -v compute-sanitizer >/dev/null; then
  # One case in each form suffices for the sanitizer, which is slow.
  step "memory accesses of the scan" 70 compute-sanitizer --error-exitcode 9 \
    python -m pytest -q -p no:cacheprovider --timeout 65 tests/kernels/test_cuda_gpu.py -k positions_out_of_range
  step "races of the scan" 30 compute-sanitizer --tool racecheck --error-exitcode 9 \
    python -m pytest -q -p no:cacheprovider --timeout 25 tests/kernels/test_cuda_gpu.py -k "positions_out_of_range and sequential"
else
  echo "compute-sanitizer is not here: memory accesses and races were not checked"
fi
step "the scan beside mamba_ssm and the device's limits" 90 \
  python benchmarks/gpu/scan_gpu.py --check --json "$results/scan_gpu.json"
step "a training step beside mamba_ssm" 90 python benchmarks/gpu/train_gpu.py --check --json "$results/train_gpu.json"
python benchmarks/gpu/run_record.py "$results/run.json" "${steps[@]}" || failed+=("run.json was not written")

printf '\n== %s s\n' "$SECONDS"
for line in ${failed[@]+"${failed[@]}"}; do echo "failed: $line"; done
[ ${#failed[@]} = 0 ]
