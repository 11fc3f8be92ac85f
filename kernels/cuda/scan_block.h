// A block of the scan: its threads' walk over the tiles and the barriers at which they meet. The kernels and the tests'
// emulation run this very function, so that a barrier that is missing here is missing there, where it is noticed.
#ifndef EDGEMAMBA_CUDA_SCAN_BLOCK_H
#define EDGEMAMBA_CUDA_SCAN_BLOCK_H

#include "scan_lane.h"

namespace edgemamba {
namespace cuda {

// One thread's way through its block. Tile k is computed while tile k + 1 is loaded; k = -1 only loads, so that the code
// for loading exists once. One barrier a tile: what `stage` overwrites was read before the last one.
template <typename Thread, typename Barrier>
EM_HD void walk(const ScanArgs& s, unsigned block, int thread, int threads, typename Thread::Shared& shared,
                const Barrier& barrier) {
  Thread lane;
  lane.begin(s, block, thread, threads);
  lane.fetch_positions(s, 0);
  lane.stage_positions(0, shared);
  barrier();
  const int tiles = lane.tiles();
  EM_LOOP
  for (int k = -1; k < tiles; ++k) {
    lane.fetch(s, k + 1, shared);
    lane.fetch_positions(s, k + 2);
    if (k >= 0) lane.compute(s, k, shared);
    lane.stage(s, k + 1, shared);
    lane.stage_positions(k + 2, shared);
    barrier();
  }
  lane.finish(s, block);
}

}  // namespace cuda
}  // namespace edgemamba

#endif  // EDGEMAMBA_CUDA_SCAN_BLOCK_H
