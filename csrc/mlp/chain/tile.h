// A tile of samples on a CPU: what is computed for them, and where a task keeps it.
#pragma once
#include <algorithm>

#include "mlp/chain/chain.h"

namespace fastebm {

constexpr int64_t kMaxPanel = 32;  // samples of a tile

// The samples [first, first + count), and where a task keeps what is computed for them.
struct Tile {
  int64_t first;
  int count;
  float* x;  // (D, panel), as is grad
  float* grad;
  float* row_bias;           // (width_1, panel), where samples have them
  float* value[2];           // (width, panel) of one layer and the next
  float* slope[kMaxHidden];  // (width, panel); then the gradient in the layer's inputs z
  float *energy, *step, *sigma, *scale;  // (panel,)
};

// Lays a tile out in the memory at `base`; returns how many floats it takes.
inline int64_t lay_out(const Mlp& mlp, float* base, Tile* tile) {
  int64_t used = 0;
  const auto take = [&](int64_t rows) {
    float* at = base ? base + used : nullptr;
    used += rows * kMaxPanel;
    return at;
  };
  const int64_t widest = *std::max_element(mlp.width, mlp.width + mlp.hidden);
  tile->x = take(mlp.dim);
  tile->grad = take(mlp.dim);
  tile->row_bias = take(mlp.width[0]);
  for (float*& value : tile->value) value = take(widest);
  for (int l = 0; l < mlp.hidden; ++l) tile->slope[l] = take(mlp.width[l]);
  for (float** lanes : {&tile->energy, &tile->step, &tile->sigma, &tile->scale}) *lanes = take(1);
  return used;
}

// The ids of a tile's lanes; those without a sample repeat the last one.
inline void lane_ids(const MlpChainParams& p, const Tile& tile, int panel, uint64_t* id) {
  for (int lane = 0; lane < panel; ++lane)
    id[lane] = sample_id(p.step, tile.first + std::min(lane, tile.count - 1));
}

// How many tasks go through the batch by vectors of `lanes` samples.
inline void set_tasks(MlpChainParams* p, int threads, int lanes) {
  p->tasks = static_cast<int>(std::min<int64_t>(threads, (p->step.batch + lanes - 1) / lanes));
}

// The tasks [begin, end), each with `floats` of the scratch: run(memory, first, end) for one tile
// of samples after the other, until none is left.
template <class Run>
void run_tasks(const MlpChainParams& p, int lanes, int64_t floats, int64_t begin, int64_t end,
               Run run) {
  const int64_t batch = p.step.batch, vectors = (batch + lanes - 1) / lanes;
  const int64_t samples = vectors < 2 * p.tasks ? lanes : 2 * lanes;  // of a tile
  for (int64_t task = begin; task < end; ++task)
    for (int64_t first; (first = p.next->fetch_add(samples)) < batch;)
      run(static_cast<float*>(p.scratch) + task * floats, first, std::min(first + samples, batch));
}

}  // namespace fastebm
