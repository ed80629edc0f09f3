// Samples drawn from a replay buffer, over raw memory: gathered, dequantised, a share of them
// restarted from the initial distribution, the others moved by a random augmentation. Here is what
// a caller fills in, the launchers, and what all paths share of reading a sample. Every random
// number is a function of (key, step, sample id) and of its place in the sample; all arithmetic is
// exactly rounded and uncontracted, so that every path gives the same bits.
#pragma once
#include "philox.h"

namespace fastebm {

constexpr uint32_t kReplayTag = 0x84;      // elements: dither and initial values
constexpr uint32_t kTransitionTag = 0x85;  // a sample's restart and augmentation
constexpr int kMaxBlurKernel = 63;

struct Range {
  double lo, hi;
};

// Ranges and probabilities that a sample's augmentation is drawn from, as torchvision names them.
struct Augmentation {
  Range scale;  // area share of the crop; {0, 0}: no crop
  Range ratio;  // its width over its height
  double hflip_p;
  Range brightness, contrast, saturation, hue;
  double jitter_p, grayscale_p;
  int kernel_size;  // 0: no blur
  Range sigma;
  double blur_p;
  Range log_ratio;  // logarithms of ratio
};

enum class Initial { kUniform, kNormal, kZero };

// All arrays are dense. A uint8 q stands for lo + (q + u) (hi - lo) / 256.
struct ReplayParams {
  Dtype dtype;  // float32, bfloat16 or uint8
  int64_t n, stored, dim;
  int64_t channels, height, width;  // with augment: dim is their product
  const void* data;                 // (stored, dim)
  const int64_t* index;             // (n,), -1: an initial sample
  const int64_t* rng;               // {key, step, id of the first sample, 0}
  const int64_t* sample_ids;        // null, or (n,)
  uint32_t t;                       // added to the step
  float lo, hi;
  bool dither;  // u is random, else 1/2
  double reinit_prob;
  Initial init;
  bool augment;
  Augmentation augmentation;
  float* out;       // (n, dim)
  int64_t* slot;    // (n,): the index, or -1 where the sample is initial
  int32_t* visits;  // null, or (stored,): draws of a slot since it was an initial sample
  void* scratch;    // as many bytes as the path asks for, 64-byte aligned
};

// Asks for large pages under a large output, which is new memory: 4 KB at a time, getting it takes
// as long as filling it.
void replay_prepare_cpu(const ReplayParams&);
// For the samples [begin, end); `scratch` belongs to this call alone.
int64_t replay_gather_scratch_cpu(const ReplayParams&);
int replay_gather_cpu(const ReplayParams&, int64_t begin, int64_t end, void* scratch);
// Queues the work on all samples on `stream` (a cudaStream_t) of the current device, which the
// scratch is for too; returns 0 or a cudaError_t.
int64_t replay_gather_scratch_cuda(const ReplayParams&);
int replay_gather_cuda(const ReplayParams&, void* stream);

FASTEBM_HD NoiseKey replay_key(const ReplayParams& p, uint32_t tag) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t, tag};
}

FASTEBM_HD uint64_t sample_id(const ReplayParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

FASTEBM_HD Words4 transition_words(const ReplayParams& p, int64_t row, uint32_t block) {
  const NoiseKey k = replay_key(p, kTransitionTag);
  return philox4x32(noise_counter(k, sample_id(p, row), block), static_cast<uint32_t>(k.key),
                    static_cast<uint32_t>(k.key >> 32));
}

// Uniform in [0, 1): 24 bits in float32, 32 in float64.
FASTEBM_HD float uniform24(uint32_t w) {
  return static_cast<float>(w >> 8) * 5.9604644775390625e-8f;
}
FASTEBM_HD double uniform32(uint32_t w) { return w * 2.3283064365386963e-10; }

// The dither keeps off the ends of [0, 1), where rounding would carry a sample to the next step.
constexpr float kDitherFrom = 0.001f, kDitherRange = 0.998f;

// Where sample `row` comes from: a slot, -1 for the initial distribution. An index that is out of
// range (possible on a device only, where the operator cannot look) is -2.
FASTEBM_HD int64_t source_slot(const ReplayParams& p, int64_t row) {
  const int64_t index = p.index[row];
  if (index < -1 || index >= p.stored) return -2;
  if (index < 0 || p.reinit_prob <= 0) return index;
  return uniform32(transition_words(p, row, 0).v[0]) < p.reinit_prob ? -1 : index;
}

// Writes down where sample `row` came from. No two samples of a call that counts have one index.
FASTEBM_HD void record_draw(const ReplayParams& p, int64_t row, int64_t slot) {
  p.slot[row] = slot;
  const int64_t index = p.index[row];
  if (p.visits && index >= 0 && slot != -2) p.visits[index] = slot < 0 ? 1 : p.visits[index] + 1;
}

// The value that a stored element stands for, dithered by u.
FASTEBM_HD float stored_value(float v, float, float, float) { return v; }
FASTEBM_HD float stored_value(Bfloat16 v, float, float, float) { return widen(v); }
FASTEBM_HD float stored_value(uint8_t v, float u, float lo, float step) {
  return lo + (static_cast<float>(v) + u) * step;
}

FASTEBM_HD float level_step(const ReplayParams& p) { return (p.hi - p.lo) * 0.00390625f; }

template <class T>
FASTEBM_HD bool needs_dither(const ReplayParams& p) {
  return sizeof(T) == 1 && p.dither;
}

// Elements 4 block .. of one sample, at most four of them.
template <class T>
FASTEBM_HD void load_block(const ReplayParams& p, int64_t row, int64_t slot, int64_t block,
                           float* to) {
  const int count = p.dim - 4 * block < 4 ? static_cast<int>(p.dim - 4 * block) : 4;
  const NoiseKey k = replay_key(p, kReplayTag);
  float u[4] = {0.5f, 0.5f, 0.5f, 0.5f};
  if (slot == -1 && p.init == Initial::kNormal) {
    const Normals4 n = normals4(k, sample_id(p, row), static_cast<uint32_t>(block));
    for (int i = 0; i < 4; ++i)
      if (i < count) to[i] = n.v[i];
    return;
  }
  if (slot == -1 ? p.init == Initial::kUniform : needs_dither<T>(p)) {
    const Words4 w = philox4x32(noise_counter(k, sample_id(p, row), static_cast<uint32_t>(block)),
                                static_cast<uint32_t>(k.key), static_cast<uint32_t>(k.key >> 32));
    for (int i = 0; i < 4; ++i) u[i] = uniform24(w.v[i]);
  }
  for (int i = 0; i < 4; ++i) {
    if (i >= count) return;
    if (slot >= 0)
      to[i] = stored_value(static_cast<const T*>(p.data)[slot * p.dim + 4 * block + i],
                           needs_dither<T>(p) ? kDitherFrom + kDitherRange * u[i] : 0.5f, p.lo,
                           level_step(p));
    else if (slot == -2)
      to[i] = NAN;
    else
      to[i] = p.init == Initial::kUniform ? p.lo + (p.hi - p.lo) * u[i] : 0.0f;
  }
}

// Returns f(T{}) for the type T that the buffer stores.
template <class F>
int visit_stored(Dtype dtype, F&& f) {
  if (dtype == Dtype::kUint8) return f(uint8_t{});
  return dtype == Dtype::kBfloat16 ? f(Bfloat16{}) : f(float{});
}

}  // namespace fastebm
