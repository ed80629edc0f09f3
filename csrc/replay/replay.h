// Samples drawn from a replay buffer, over raw memory: gathered, dequantised, a share of them
// restarted from the initial distribution, the others moved by a random augmentation. Here is what
// a caller fills in, the launchers, and what all paths share of reading a sample. Every random
// number is a function of (key, step, sample id) and of its place in the sample; all arithmetic is
// exactly rounded and uncontracted, so that every path gives the same bits.
#pragma once
#include "random/philox.h"

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
  Range color[4];  // brightness, contrast, saturation, hue
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

FASTEBM_HD Words4 transition_words(const ReplayParams& p, uint64_t id, uint32_t block) {
  const NoiseKey k = replay_key(p, kTransitionTag);
  return philox4x32(noise_counter(k, id, block), static_cast<uint32_t>(k.key),
                    static_cast<uint32_t>(k.key >> 32));
}

// Uniform in [0, 1): 24 bits in float32, 32 in float64.
constexpr float kTwoM24 = 5.9604644775390625e-8f;
FASTEBM_HD float uniform24(uint32_t w) { return static_cast<float>(w >> 8) * kTwoM24; }
FASTEBM_HD double uniform32(uint32_t w) { return w * 2.3283064365386963e-10; }

// The dither keeps off the ends of [0, 1), where rounding would carry a sample to the next step.
constexpr float kDitherFrom = 0.001f, kDitherRange = 0.998f;

// Where a sample that asks for `index` comes from: a slot, -1 for the initial distribution. An
// index that is out of range (possible on a device only, where the operator cannot look) is -2.
FASTEBM_HD int64_t source_slot(const ReplayParams& p, uint64_t id, int64_t index) {
  if (index < -1 || index >= p.stored) return -2;
  if (index < 0 || p.reinit_prob <= 0) return index;
  return uniform32(transition_words(p, id, 0).v[0]) < p.reinit_prob ? -1 : index;
}

// Writes down where sample `row` came from. No two samples of a call that counts have one index. A
// count that is full stays so.
FASTEBM_HD void record_draw(const ReplayParams& p, int64_t row, int64_t index, int64_t slot) {
  p.slot[row] = slot;
  if (p.visits && index >= 0 && slot != -2) {
    const int32_t before = p.visits[index];
    p.visits[index] = slot < 0 ? 1 : before < INT32_MAX ? before + 1 : before;
  }
}

FASTEBM_HD float level_step(const ReplayParams& p) { return (p.hi - p.lo) * 0.00390625f; }

template <class T>
FASTEBM_HD bool needs_dither(const ReplayParams& p) {
  return sizeof(T) == 1 && p.dither;
}

// Whether the words of a block go into its elements.
template <class T>
FASTEBM_HD bool needs_words(const ReplayParams& p, int64_t slot) {
  return slot == -1 ? p.init != Initial::kZero : slot >= 0 && needs_dither<T>(p);
}

FASTEBM_HD Words4 block_counter(const ReplayParams& p, uint64_t id, uint32_t block) {
  return noise_counter(replay_key(p, kReplayTag), id, block);
}

// What four stored elements v stand for. A dither that is not wanted is 1/2 + 0 u; that it scales u
// by two powers at once changes no bit.
template <class T>
FASTEBM_HD void stored_values(const ReplayParams& p, const float* v, const Words4& w, float* to) {
  const float from = p.dither ? kDitherFrom : 0.5f;
  const float range = p.dither ? kDitherRange * kTwoM24 : 0.0f;
  for (int i = 0; i < 4; ++i)
    if constexpr (sizeof(T) == 1)
      to[i] = p.lo + (v[i] + (from + range * static_cast<float>(w.v[i] >> 8))) * level_step(p);
    else
      to[i] = v[i];
}

FASTEBM_HD float stored_number(float v) { return v; }
FASTEBM_HD float stored_number(Bfloat16 v) { return widen(v); }
FASTEBM_HD float stored_number(uint8_t v) { return v; }

// Four elements of a sample that is not in the buffer.
FASTEBM_HD void initial_values(const ReplayParams& p, int64_t slot, const Words4& w, float* to) {
  if (slot == -1 && p.init == Initial::kNormal) {
    const Normals4 n = normals_of_words(w);
    for (int i = 0; i < 4; ++i) to[i] = n.v[i];
    return;
  }
  for (int i = 0; i < 4; ++i)
    to[i] = slot == -2                    ? NAN
            : p.init == Initial::kUniform ? p.lo + (p.hi - p.lo) * uniform24(w.v[i])
                                          : 0.0f;
}

// Elements 4 block .. of one sample, at most four of them.
template <class T>
FASTEBM_HD void load_block(const ReplayParams& p, uint64_t id, int64_t slot, int64_t block,
                           float* to) {
  const int64_t left = p.dim - 4 * block;
  const size_t count = left < 4 ? static_cast<size_t>(left) : 4;
  Words4 w{};
  if (needs_words<T>(p, slot)) {
    const uint64_t key = replay_key(p, kReplayTag).key;
    w = philox4x32(block_counter(p, id, static_cast<uint32_t>(block)), static_cast<uint32_t>(key),
                   static_cast<uint32_t>(key >> 32));
  }
  float values[4];
  if (slot >= 0) {
    T stored[4]{};
    memcpy(stored, static_cast<const T*>(p.data) + slot * p.dim + 4 * block, count * sizeof(T));
    for (int i = 0; i < 4; ++i) values[i] = stored_number(stored[i]);
    stored_values<T>(p, values, w, values);
  } else {
    initial_values(p, slot, w, values);
  }
  memcpy(to, values, count * sizeof(float));
}

// Returns f(T{}) for the type T that the buffer stores.
template <class F>
int visit_stored(Dtype dtype, F&& f) {
  if (dtype == Dtype::kUint8) return f(uint8_t{});
  return dtype == Dtype::kBfloat16 ? f(Bfloat16{}) : f(float{});
}

}  // namespace fastebm
