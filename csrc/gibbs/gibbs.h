// Bernoulli(sigmoid(beta * logit)) over raw memory, the draw of block Gibbs sampling: what a caller
// fills in, the launchers, and the arithmetic of one element. No torch, no Python.
#pragma once
#include "random/philox.h"

namespace fastebm {

// All arrays are dense. Logits of float64 are rounded to float32 first.
struct BernoulliParams {
  Dtype dtype;
  int64_t batch, dim;
  const void* logits;
  void* out;                  // of `dtype`, and may be the logits; or bytes
  bool bytes;                 // uint8 out: 0, 1, and 255 for NaN, which the others keep
  const int64_t* rng;         // {key, step, first sample id, 0}, on the device of the logits
  uint32_t t;                 // added to the step in rng
  const int64_t* sample_ids;  // null: first sample id + row; or (batch,)
  float beta;
  uint32_t tag;
};

// Blocks of four elements as in langevin/langevin.h; returns 0 or a cudaError_t. The CPU launcher
// works on blocks [begin, end) of the batch * ceil(dim / 4) there are, the CUDA one takes all of
// them.
using BernoulliLauncher = int(const BernoulliParams&, int64_t begin, int64_t end, void* stream);
BernoulliLauncher bernoulli_sigmoid_cpu, bernoulli_sigmoid_cuda;

FASTEBM_HD NoiseKey noise_key(const BernoulliParams& p) {
  return NoiseKey{static_cast<uint64_t>(p.rng[0]), static_cast<uint32_t>(p.rng[1]) + p.t, p.tag};
}

FASTEBM_HD uint64_t sample_id(const BernoulliParams& p, int64_t row) {
  return static_cast<uint64_t>(p.sample_ids ? p.sample_ids[row] : p.rng[2] + row);
}

namespace sigmoid {
constexpr float kMaxLogit = 24.0f;  // its exp(-a) is below every u there is
constexpr float kRound =
    12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
constexpr float kMinusLog2E = -1.4426950408889634f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440054690583e-4f;
// exp(-s) on [-ln 2 / 2, ln 2 / 2], minimax of degree 5 with value 1 at 0, relative error 1e-7
constexpr float kExp5 = -0.008290229365229607f, kExp4 = 0.041898392140865326f,
                kExp3 = -0.16667640209197998f, kExp2 = 0.49999144673347473f,
                kExp1 = -0.9999997019767761f, kExp0 = 1.0f;
constexpr float kTwoM31 = 4.656612873077393e-10f, kTwoM32 = 2.3283064365386963e-10f;
}  // namespace sigmoid

// All bits set for 1, which comes with probability sigmoid(beta * logit), and none for 0; *size
// gets the logit's size, NaN for NaN. The rarer of the two comes when u < e / (1 + e), e =
// exp(-|beta * logit|), written without the division. u = (w' + 1/2) / 2^31, w' the upper 31 bits
// of w, or of ~w for a logit >= 0: the answer is that of u < sigmoid for one u in (0, 1), so it
// does not fall as the logit rises, and both tails have all of u's bits.
FASTEBM_HD uint32_t bernoulli_draw(float logit, uint32_t w, float beta, float* size) {
  using namespace sigmoid;
  const float a = mul_rn(beta, logit);
  const uint32_t sign = static_cast<uint32_t>(static_cast<int32_t>(float_bits(a)) >> 31);
  const float absolute = float_from_bits(float_bits(a) & 0x7fffffffu);
  const float c = kMaxLogit < absolute ? kMaxLogit : absolute;
  const float z = fma_rn(c, kMinusLog2E, kRound);
  const float n = z - kRound;
  const float s = fma_rn(n, kLn2Low, fma_rn(n, kLn2High, c));
  float e = kExp5;
  e = fma_rn(e, s, kExp4);
  e = fma_rn(e, s, kExp3);
  e = fma_rn(e, s, kExp2);
  e = fma_rn(e, s, kExp1);
  e = fma_rn(e, s, kExp0);
  e = float_from_bits(float_bits(e) + (float_bits(z) << 23));
  const uint32_t upper = (w ^ ~sign) >> 1;
  const float u = fma_rn(static_cast<float>(static_cast<int32_t>(upper)), kTwoM31, kTwoM32);
  *size = c;
  return ~sign ^ (fma_rn(u, e, u) < e ? ~0u : 0u);
}

FASTEBM_HD float bernoulli_element(float logit, uint32_t w, float beta) {
  float size;
  const uint32_t one = bernoulli_draw(logit, w, beta, &size);
  return fma_rn(size, 0.0f, float_from_bits(one & 0x3f800000u));
}

// What is stored of an element.
template <class Out>
FASTEBM_HD Out stored_draw(float x) {
  return narrow<Out>(static_cast<Compute<Out>>(x));
}
template <>
FASTEBM_HD uint8_t stored_draw<uint8_t>(float x) {  // by its bits, which vectorises
  const uint32_t bits = float_bits(x);
  return static_cast<uint8_t>((bits > 0x7f800000u ? 255u : 0u) | (bits == 0x3f800000u ? 1u : 0u));
}

// One block of up to four elements.
template <class T, class Out>
FASTEBM_HD void bernoulli_block(const T* logits, Out* out, int count, Words4 w, float beta) {
  for (int i = 0; i < count; ++i)
    out[i] =
        stored_draw<Out>(bernoulli_element(static_cast<float>(widen(logits[i])), w.v[i], beta));
}

// The words of one block.
FASTEBM_HD Words4 block_words(const NoiseKey& k, uint64_t sample_id, int64_t block) {
  return philox4x32(noise_counter(k, sample_id, static_cast<uint32_t>(block)),
                    static_cast<uint32_t>(k.key), static_cast<uint32_t>(k.key >> 32));
}

// Returns f(T{}, Out{}) for the types of the logits and of the result.
template <class F>
int visit_types(const BernoulliParams& p, F&& f) {
  return visit_dtype(p.dtype, [&](auto t) { return p.bytes ? f(t, uint8_t{}) : f(t, t); });
}

}  // namespace fastebm
