// What the kernels are told, and where everything lies: one struct and the index arithmetic, shared by the device code,
// the launcher and the tests' emulation. Offsets are 64-bit: no shape that passed validation can overflow them.
#ifndef EDGEMAMBA_CUDA_SCAN_ARGS_H
#define EDGEMAMBA_CUDA_SCAN_ARGS_H

#include "scan_step.h"

namespace edgemamba {
namespace cuda {

typedef long long Index;

constexpr int kMaxThreads = 128;  // of a block
constexpr int kWarp = 32;

// By value as the one parameter of every kernel. The layout is that of 64-bit Linux on either side.
struct ScanArgs {
  const void* u;            // T (B, P, Gu, D)
  const void* delta;        // T (B, P, G, D)
  const float* A;           // (G, D, N)
  const void* B;            // T (B, P, G, N)
  const void* C;            // T (B, P, G, N)
  const float* D;           // (G, D)
  const float* delta_bias;  // (G, D)
  const int* order;         // (G, S)
  void* y;                  // T (B, P, D)
  float* partial;           // (B, G, S, D): each direction's output by step; null where G = 1, which writes y itself
  int* step_of;             // (G, P): the step at which a direction visits a position, -1: never; null with `partial`
  float* states;            // (B, G, chunks, N, D): a chunk's last, then its first state; null where there is one chunk
  float* dt_sums;           // (B, G, chunks, D): sum of dt over a chunk; null with `states`
  Index batch, positions, steps;
  int directions, u_directions, channels, states_per_channel;
  // From a position (`partial`: a step) to the next, in bytes below 2^31: an address is one multiply-add.
  int u_row, delta_row, projection_row, y_row, partial_row;
  int chunks, chunk_steps;  // chunk_steps is a multiple of 8 where there are chunks
  int tiles;                // blocks for all channels
  int softplus;
};

// Which work a block has: `tiles` blocks of consecutive channels, then chunks, directions, batch elements. Neighbours in
// the grid share B and C. The grid has fewer than 2^31 blocks.
struct Block {
  unsigned batch, direction, chunk, tile;
};

EM_HD Block block_at(unsigned block, unsigned tiles, unsigned chunks, unsigned directions) {
  Block at;
  at.tile = block % tiles;
  block /= tiles;
  at.chunk = block % chunks;
  block /= chunks;
  at.direction = block % directions;
  at.batch = block / directions;
  return at;
}

// Where direction g of batch element b begins; its positions are `stride` rows apart.
EM_HD Index input_start(const ScanArgs& s, Index b, Index g) { return (b * s.positions * s.directions + g) * s.channels; }
EM_HD Index u_start(const ScanArgs& s, Index b, Index g) {
  return (b * s.positions * s.u_directions + (s.u_directions == 1 ? 0 : g)) * s.channels;
}
EM_HD Index projection_start(const ScanArgs& s, Index b, Index g) {
  return (b * s.positions * s.directions + g) * s.states_per_channel;
}
EM_HD Index partial_start(const ScanArgs& s, Index b, Index g) { return (b * s.directions + g) * s.steps * s.channels; }
EM_HD Index sum_start(const ScanArgs& s, Index b, Index g, Index chunk) {
  return ((b * s.directions + g) * s.chunks + chunk) * s.channels;
}
EM_HD Index state_start(const ScanArgs& s, Index b, Index g, Index chunk) {
  return sum_start(s, b, g, chunk) * s.states_per_channel;
}

}  // namespace cuda
}  // namespace edgemamba

#endif  // EDGEMAMBA_CUDA_SCAN_ARGS_H
