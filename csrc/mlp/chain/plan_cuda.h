// Where the weights of a network lie on a CUDA device, and how many samples share them.
//
// The form in shared memory: biases and the last layer's weights as floats, then the matrices,
// padded with zeros, in rows of an odd number of 16-byte quads, so that neither rows nor columns of
// them meet in a bank. Where the network fits, each CUDA block packs it there. Else a kernel packs
// it into scratch once a chain, and slabs of it go through two stages. Of the inner dimension of a
// product a slab has kSlabBytes; where the other dimension is large half of them, if no more fits.
#pragma once
#include <algorithm>

#include "launch/device.h"
#include "launch/ptx_cuda.h"
#include "mlp/chain/chain.h"

namespace fastebm {
namespace {

constexpr int kSlabBytes = 128;
constexpr int kLarge = 256;  // of features, above which a warp has more of them and slabs have less
constexpr int kPackBlocks = 64;
constexpr int kChainThreads = 256;  // of a CUDA block that tiles do not share
constexpr int kChainBlocks = 128;   // CUDA blocks to fill a device

inline int pieces(int64_t n, int64_t size) { return static_cast<int>((n + size - 1) / size); }
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
  int large_slab;           // bytes of the inner dimension, where the other is above kLarge
  int stage_bytes;          // for any slab
  int warps, tiles;         // of a CUDA block
  int samples;              // of a tile
  bool shared_tile;         // float32: all warps share a tile
  int groups;               // of 32 features, that a warp has; bfloat16: of 16
  int tile_bytes;           // of shared memory
  int most_shared_bytes;    // that a CUDA block may have

  FASTEBM_HD int slab(int other) const { return other > kLarge ? large_slab : kSlabBytes; }
  FASTEBM_HD int weight_bytes() const { return resident ? bytes : vector_bytes + 2 * stage_bytes; }
  int shared_bytes() const { return weight_bytes() + tiles * tile_bytes; }
  bool fits() const { return shared_bytes() <= most_shared_bytes; }
  int scratch_bytes() const { return resident ? 0 : bytes; }
};

// How the blocks of a chain are launched.
struct ChainBlocks {
  dim3 grid, block;
  size_t shared_bytes;
  ChainBlocks(const MlpChainParams& p, const ChainPlan& plan)
      : grid(static_cast<unsigned>(pieces(p.step.batch, plan.samples * plan.tiles))),
        block(32u * plan.warps),
        shared_bytes(static_cast<size_t>(plan.shared_bytes())) {}
};

// Has slabs of that size of large matrices, with elements of `size` bytes.
inline void set_large_slab(ChainPlan* plan, int size, int bytes) {
  plan->large_slab = bytes;
  plan->stage_bytes = 0;
  for (int l = 0; l < plan->layers; ++l) {
    const int forward = plan->rows[l] * (plan->slab(plan->rows[l]) + 16);
    const int back = plan->slab(plan->columns[l]) / size * plan->pitch[l];
    plan->stage_bytes = std::max({plan->stage_bytes, forward, back});
  }
}

// The packed form of a network whose matrices have elements of `size` bytes: what all plans share.
inline ChainPlan pack_plan(const Mlp& mlp, int size, int most_shared_bytes) {
  ChainPlan plan{};
  plan.most_shared_bytes = most_shared_bytes;
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
  set_large_slab(&plan, size, kSlabBytes / 2);
  return plan;
}

// Where the weights lie is settled last: is there room for all of them beside the tiles?
inline bool fits_resident(ChainPlan plan) {
  plan.resident = true;
  return plan.fits();
}

// The plan with slabs as large as there is room for.
inline ChainPlan with_slabs(ChainPlan plan, int size) {
  set_large_slab(&plan, size, kSlabBytes);
  if (!plan.fits()) set_large_slab(&plan, size, kSlabBytes / 2);
  return plan;
}

__device__ __forceinline__ uint4 pack_quad(const float (&v)[4], float) {
  return make_uint4(float_bits(v[0]), float_bits(v[1]), float_bits(v[2]), float_bits(v[3]));
}
__device__ __forceinline__ uint4 pack_quad(const float (&v)[8], Bfloat16) {
  return make_uint4(bfloat16_pair(v[0], v[1]), bfloat16_pair(v[2], v[3]), bfloat16_pair(v[4], v[5]),
                    bfloat16_pair(v[6], v[7]));
}

// A thread's share of packing hidden matrix l: the quads `first`, `first` + `every`, ... A few
// at once, as each takes the time of a read. kWhole: no quad is cut short, all are aligned.
template <class E, bool kWhole>
__device__ void pack_matrix(const Mlp& mlp, const ChainPlan& plan, int l, unsigned char* packed,
                            int first, int every) {
  constexpr int kElements = 16 / static_cast<int>(sizeof(E)), kAtOnce = 32 / kElements;
  const int rows = mlp.width[l], columns = static_cast<int>(mlp.inputs(l));
  const int across = plan.pitch[l] / 16, quads = plan.rows[l] * across;
  uint4* to = reinterpret_cast<uint4*>(packed + plan.matrix[l]);
  const int rows_on = every / across, quads_on = every % across;  // to the thread's next quad
  int next_row = first / across, next_quad = first % across;
  for (int i = first; i < quads; i += kAtOnce * every) {
    float v[kAtOnce][kElements];
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a) {
      const int r = next_row, c = next_quad * kElements;
      const bool wraps = next_quad + quads_on >= across;
      next_row += wraps ? rows_on + 1 : rows_on;
      next_quad += wraps ? quads_on - across : quads_on;
      const float* from = mlp.weight[l] + r * columns + c;
#pragma unroll
      for (int e = 0; e < kElements; e += kWhole ? 4 : 1) {
        if constexpr (kWhole) {
          const float4 four = r < rows && c < columns
                                  ? __ldg(reinterpret_cast<const float4*>(from + e))
                                  : make_float4(0, 0, 0, 0);
          v[a][e] = four.x, v[a][e + 1] = four.y, v[a][e + 2] = four.z, v[a][e + 3] = four.w;
        } else {
          v[a][e] = r < rows && c + e < columns ? __ldg(from + e) : 0.0f;
        }
      }
    }
#pragma unroll
    for (int a = 0; a < kAtOnce; ++a)
      if (i + a * every < quads) to[i + a * every] = pack_quad(v[a], E{});
  }
}

// The same of the whole network.
template <class E>
__device__ void pack_network(const Mlp& mlp, const ChainPlan& plan, unsigned char* packed,
                             int first, int every) {
  for (int l = 0; l < plan.layers; ++l) {
    const bool whole = mlp.inputs(l) % (16 / sizeof(E)) == 0 &&
                       reinterpret_cast<uintptr_t>(mlp.weight[l]) % 16 == 0;
    if (whole)
      pack_matrix<E, true>(mlp, plan, l, packed, first, every);
    else
      pack_matrix<E, false>(mlp, plan, l, packed, first, every);
    float* bias = reinterpret_cast<float*>(packed + plan.bias[l]);
    for (int f = first; f < plan.rows[l]; f += every)
      bias[f] = f < mlp.width[l] && mlp.bias[l] ? __ldg(mlp.bias[l] + f) : 0.0f;
  }
  float* last = reinterpret_cast<float*>(packed + plan.last);
  const int l = plan.layers, padded = plan.rows[l - 1];
  for (int f = first; f < padded + 4; f += every)  // to the end of the quad: quads are copied
    last[f] = f < mlp.width[l - 1]         ? __ldg(mlp.weight[l] + f)
              : f == padded && mlp.bias[l] ? __ldg(mlp.bias[l])
                                           : 0.0f;
}

// packed = the network as E, whose quads of matrices the threads take in turn. Reads and writes
// each weight once.
template <class E>
__global__ void __launch_bounds__(kChainThreads)
    pack_kernel(const __grid_constant__ Mlp mlp, const __grid_constant__ ChainPlan plan,
                unsigned char* packed) {
  pack_network<E>(mlp, plan, packed, blockIdx.x * kChainThreads + threadIdx.x,
                  gridDim.x * kChainThreads);
}

// Into scratch; nothing where the network is resident.
template <class E>
int launch_pack(const MlpChainParams& p, const ChainPlan& plan, void* stream) {
  if (plan.resident) return 0;
  return launch(pack_kernel<E>, dim3(kPackBlocks), dim3(kChainThreads), 0, stream, p.mlp, plan,
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
  // Begins to fill shared memory; the first barrier is inside. `packed` is read where the matrices
  // are not resident, the network itself where they are.
  __device__ WeightStream(const Mlp& mlp, const ChainPlan& plan, const void* packed,
                          unsigned char* shared)
      : plan_(plan), packed_(static_cast<const unsigned char*>(packed)), shared_(shared) {
    if (plan.resident) {
      pack_network<E>(mlp, plan, shared, threadIdx.x, blockDim.x);
    } else {
      for (int i = 16 * threadIdx.x; i < plan.vector_bytes; i += 16 * blockDim.x)
        copy_async(shared + i, packed_ + i, true);
      prefetch();
      commit_copies();
      wait_copies<0>();
    }
    __syncthreads();
  }

  // The next slab, of matrix l, which the caller knows sooner than it could be found here. Where
  // the matrices are not resident this is a barrier, and ends the use of the slab before.
  template <bool kForward>
  __device__ Slab<E> next(int l) {
    const int inner = kForward ? plan_.columns[l] : plan_.rows[l];
    int at = plan_.matrix[l], pitch = plan_.pitch[l], count = inner;
    if (!plan_.resident) {
      wait_copies<0>();
      __syncthreads();
      const int slab = plan_.slab(kForward ? plan_.rows[l] : plan_.columns[l]);
      const int most = slab / static_cast<int>(sizeof(E));
      at = stage();
      pitch = kForward ? slab + 16 : pitch;
      count = inner - from_ < most ? inner - from_ : most;
      from_ += count;
      if (from_ == inner) {
        from_ = 0;
        product_ = product_ + 1 == 2 * plan_.layers ? 0 : product_ + 1;
      }
      second_ = !second_;
      prefetch();
      commit_copies();
    }
    return {reinterpret_cast<const E*>(shared_ + at), pitch / static_cast<int>(sizeof(E)), count};
  }

  // Waits for what has been asked for and will not be used.
  __device__ void finish() { wait_copies<0>(); }

 private:
  __device__ int stage() const { return plan_.vector_bytes + (second_ ? plan_.stage_bytes : 0); }

  // Asks for the slab at (product_, from_).
  __device__ void prefetch() {
    const bool forward = product_ < plan_.layers;
    const int l = forward ? product_ : 2 * plan_.layers - 1 - product_;
    constexpr int kSize = static_cast<int>(sizeof(E));
    const unsigned char* matrix = packed_ + plan_.matrix[l];
    unsigned char* to = shared_ + stage();
    if (forward) {  // columns from_, ... of every row
      const int slab = plan_.slab(plan_.rows[l]), shift = slab == kSlabBytes ? 3 : 2;
      const int left = (plan_.columns[l] - from_) * kSize;
      const int quads = (left < slab ? left : slab) / 16;
      for (int i = threadIdx.x; i < plan_.rows[l] << shift; i += blockDim.x) {
        const int row = i >> shift, quad = i - (row << shift);
        if (quad < quads)
          copy_async(to + row * (slab + 16) + 16 * quad,
                     matrix + row * plan_.pitch[l] + from_ * kSize + 16 * quad, true);
      }
    } else {  // rows from_, ...
      const int left = plan_.rows[l] - from_, most = plan_.slab(plan_.columns[l]) / kSize;
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
