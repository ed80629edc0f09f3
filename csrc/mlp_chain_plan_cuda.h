// Where the weights of a network lie on a CUDA device, and how many samples share them.
//
// A packing kernel writes the network into scratch once a chain, in the form it has in shared
// memory: biases and the last layer's weights as floats, then the matrices, padded with zeros, in
// rows of an odd number of 16-byte quads, so that neither rows nor columns of them meet in a bank.
// Where they fit, a CUDA block copies them all; else slabs of them go through two stages.
#pragma once
#include <algorithm>

#include "device.h"
#include "mlp_chain.h"

namespace fastebm {
namespace {

constexpr int kSlabBytes = 128;                      // of the inner dimension of a product
constexpr int kStageBytes = kMaxWidth * (128 + 16);  // the larger of a slab's two forms
constexpr int kChainThreads = 256;                   // of a CUDA block, at most

FASTEBM_HD constexpr int round_up(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Offsets are bytes from the start of the packed network, layers from 0.
struct ChainPlan {
  int layers;               // hidden ones
  int rows[kMaxHidden];     // of each matrix, padded: the features that its layer gives
  int columns[kMaxHidden];  // those that it takes
  int pitch[kMaxHidden];    // bytes of a row
  int matrix[kMaxHidden];   // offsets
  int bias[kMaxHidden];     //
  int widest;               // padded features of the widest hidden layer
  int last;                 // of the last layer's weights, and its bias after them
  int vector_bytes;         // of all that is not a matrix, and so the offset of the first
  int bytes;                // of the whole
  bool resident;            // all of it is in shared memory
  int warps;                // of a CUDA block
  int tile_bytes;           // of shared memory for a warp's samples, or (bfloat16) a block's

  FASTEBM_HD int weight_bytes() const { return resident ? bytes : vector_bytes + 2 * kStageBytes; }
  int shared_bytes(int tiles) const { return weight_bytes() + tiles * tile_bytes; }
};

// The packed form of a network whose matrices have elements of `size` bytes: what all plans share.
inline ChainPlan pack_plan(const Mlp& mlp, int size) {
  ChainPlan plan{};
  const int multiple = size == 2 ? 32 : 4;  // a warp's features on tensor cores; four floats
  plan.layers = mlp.hidden;
  int at = 0;
  for (int l = 0; l < mlp.hidden; ++l) {
    plan.rows[l] = round_up(mlp.width[l], multiple);
    plan.columns[l] = l == 0 ? round_up(static_cast<int>(mlp.dim), multiple) : plan.rows[l - 1];
    plan.pitch[l] = (plan.columns[l] * size / 16 | 1) * 16;
    plan.bias[l] = at;
    at += plan.rows[l] * 4;
    plan.widest = std::max(plan.widest, plan.rows[l]);
  }
  plan.last = at;
  at += (plan.rows[mlp.hidden - 1] + 4) * 4;
  plan.vector_bytes = at;
  for (int l = 0; l < mlp.hidden; ++l) {
    plan.matrix[l] = at;
    at += plan.rows[l] * plan.pitch[l];
  }
  plan.bytes = at;
  return plan;
}

__device__ __forceinline__ float pack_element(float v, float) { return v; }
__device__ __forceinline__ Bfloat16 pack_element(float v, Bfloat16) { return narrow<Bfloat16>(v); }

// packed = the network as E. CUDA block (r, l) takes row r of matrix l, a thread every 256th
// column; of l = layers the last layer's weights. Reads and writes each weight once.
template <class E>
__global__ void __launch_bounds__(kChainThreads)
    pack_kernel(const __grid_constant__ Mlp mlp, const __grid_constant__ ChainPlan plan,
                unsigned char* packed) {
  const int l = blockIdx.y, r = blockIdx.x;
  const bool last = l == plan.layers;
  const int rows = last ? 1 : mlp.width[l];
  const int columns = l == 0 ? static_cast<int>(mlp.dim) : mlp.width[l - 1];
  if (r >= (last ? 1 : plan.rows[l])) return;
  const float* row = mlp.weight[l] + static_cast<int64_t>(r) * columns;
  if (last) {
    float* to = reinterpret_cast<float*>(packed + plan.last);
    const int padded = plan.rows[l - 1];
    for (int c = threadIdx.x; c < padded; c += kChainThreads) to[c] = c < columns ? row[c] : 0.0f;
    if (threadIdx.x == 0) to[padded] = mlp.bias[l] ? *mlp.bias[l] : 0.0f;
    return;
  }
  E* to = reinterpret_cast<E*>(packed + plan.matrix[l] + r * plan.pitch[l]);
  for (int c = threadIdx.x; c < plan.pitch[l] / static_cast<int>(sizeof(E)); c += kChainThreads)
    to[c] = pack_element(r < rows && c < columns ? row[c] : 0.0f, E{});
  if (threadIdx.x == 0)
    reinterpret_cast<float*>(packed + plan.bias[l])[r] =
        r < rows && mlp.bias[l] ? mlp.bias[l][r] : 0.0f;
}

template <class E>
int launch_pack(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  return launch(pack_kernel<E>,
                dim3(static_cast<unsigned>(plan.widest), static_cast<unsigned>(plan.layers) + 1),
                dim3(kChainThreads), 0, stream, p.mlp, plan,
                static_cast<unsigned char*>(p.scratch));
}

// A part of a matrix in shared memory: of a product's inner dimension `count`, from where the part
// before ended.
template <class E>
struct Slab {
  const E* at;
  int pitch;  // in elements
  int count;
};

// The matrices as the products of a step ask for them: product q < layers takes matrix q forward,
// inner dimension its columns; the others take matrix 2 layers - 1 - q back, inner dimension its
// rows. Every thread of the block asks for the same slabs.
template <class E>
class WeightStream {
 public:
  // Begins to fill shared memory; the first barrier is inside.
  __device__ WeightStream(const ChainPlan& plan, const void* packed, unsigned char* shared)
      : plan_(plan), packed_(static_cast<const unsigned char*>(packed)), shared_(shared) {
    const int bytes = plan.resident ? plan.bytes : plan.vector_bytes;
    for (int i = 16 * threadIdx.x; i < bytes; i += 16 * blockDim.x)
      copy_async(shared + i, packed_ + i, true);
    if (!plan.resident) prefetch();
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  }

  // The next slab. Where the matrices are not resident this is a barrier, and ends the use of the
  // slab before.
  __device__ Slab<E> next() {
    constexpr int kSlab = kSlabBytes / static_cast<int>(sizeof(E));
    const bool forward = product_ < plan_.layers;
    const int l = forward ? product_ : 2 * plan_.layers - 1 - product_;
    const int inner = forward ? plan_.columns[l] : plan_.rows[l];
    Slab<E> slab;
    if (plan_.resident) {
      slab.at = reinterpret_cast<const E*>(shared_ + plan_.matrix[l]);
      slab.pitch = plan_.pitch[l] / static_cast<int>(sizeof(E));
      slab.count = inner;
    } else {
      wait_copies<0>();
      __syncthreads();
      slab.at = reinterpret_cast<const E*>(stage());
      slab.pitch = (forward ? kSlabBytes + 16 : plan_.pitch[l]) / static_cast<int>(sizeof(E));
      slab.count = inner - from_ < kSlab ? inner - from_ : kSlab;
    }
    from_ += slab.count;
    if (from_ == inner) {
      from_ = 0;
      product_ = product_ + 1 == 2 * plan_.layers ? 0 : product_ + 1;
    }
    if (!plan_.resident) {
      second_ = !second_;
      prefetch();
      commit_copies();
    }
    return slab;
  }

  // Waits for what has been asked for and will not be used.
  __device__ void finish() { wait_copies<0>(); }

 private:
  __device__ unsigned char* stage() const {
    return shared_ + plan_.vector_bytes + (second_ ? kStageBytes : 0);
  }

  // Asks for the slab at (product_, from_).
  __device__ void prefetch() {
    const bool forward = product_ < plan_.layers;
    const int l = forward ? product_ : 2 * plan_.layers - 1 - product_;
    constexpr int kSize = static_cast<int>(sizeof(E));
    const unsigned char* matrix = packed_ + plan_.matrix[l];
    unsigned char* to = stage();
    if (forward) {  // columns from_, ... of every row
      const int left = (plan_.columns[l] - from_) * kSize;
      const int quads = (left < kSlabBytes ? left : kSlabBytes) / 16;
      for (int i = threadIdx.x; i < plan_.rows[l] * 8; i += blockDim.x) {
        const int row = i / 8, quad = i % 8;
        if (quad < quads)
          copy_async(to + row * (kSlabBytes + 16) + 16 * quad,
                     matrix + row * plan_.pitch[l] + from_ * kSize + 16 * quad, true);
      }
    } else {  // rows from_, ...
      const int left = plan_.rows[l] - from_, most = kSlabBytes / kSize;
      const int bytes = (left < most ? left : most) * plan_.pitch[l];
      for (int i = 16 * threadIdx.x; i < bytes; i += 16 * blockDim.x)
        copy_async(to + i, matrix + from_ * plan_.pitch[l] + i, true);
    }
  }

  const ChainPlan& plan_;
  const unsigned char* packed_;
  unsigned char* shared_;
  int product_ = 0, from_ = 0;
  bool second_ = false;
};

}  // namespace
}  // namespace fastebm
