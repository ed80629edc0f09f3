// Which references may be among the k nearest of a query, as one thread goes through its share of
// them: bounds in, exact neighbours out.
#pragma once
#include <algorithm>

#include "neighbor/search.h"

namespace fastebm {

constexpr int kCandidates = 32;

template <class X>
float centred(X x, float center) {
  return static_cast<float>(x - static_cast<X>(center));
}

struct Candidate {
  float lower;
  int32_t index;
};

// For each query of a block: the k smallest upper bounds, of which the largest is the threshold;
// what the threshold does not rule out; and exact neighbours. Of true neighbours none is lost: k
// references are at most as far as the threshold says, so one whose lower bound is above it has k
// nearer ones.
struct CandidateLists {
  float* thresholds;  // (padded queries,)
  float* uppers;      // (queries, k)
  int* counts;
  Candidate* candidates;  // (queries, kCandidates)
  Neighbor* lists;        // (queries, k)
  int k;

  void start(int queries) const {
    std::fill_n(uppers, queries * k, HUGE_VALF);
    std::fill_n(counts, queries, 0);
    std::fill_n(thresholds, queries, HUGE_VALF);
    for (int q = 0; q < queries; ++q) clear_neighbors(lists + q * k, k);
  }

  // k references are known to be no farther than `upper`.
  void lower_threshold(int q, float upper) const {
    if (upper < thresholds[q]) thresholds[q] = upper;
  }

  // Returns how many candidates it has rescored to make room.
  template <class Rescore>
  int take(int q, int64_t j, float lower, float upper, const Rescore& rescore) const {
    SmallestK<float>::insert(uppers + q * k, k, upper);
    lower_threshold(q, uppers[q * k + k - 1]);
    candidates[q * kCandidates + counts[q]++] = {lower, static_cast<int32_t>(j)};
    if (counts[q] < kCandidates) return 0;
    prune(q);
    return counts[q] > kCandidates / 2 ? finish(q, rescore) : 0;
  }

  void prune(int q) const {
    Candidate* own = candidates + q * kCandidates;
    const float threshold = thresholds[q];
    counts[q] =
        static_cast<int>(std::remove_if(own, own + counts[q],
                                        [=](const Candidate& c) { return c.lower > threshold; }) -
                         own);
  }

  template <class Rescore>
  int finish(int q, const Rescore& rescore) const {
    prune(q);
    const int rescored = counts[q];
    for (int c = 0; c < rescored; ++c) rescore(q, candidates[q * kCandidates + c].index);
    counts[q] = 0;
    return rescored;
  }
};

// For blocks of at most so many queries.
inline CandidateLists candidate_lists(int64_t queries, int k, Carver& carver) {
  CandidateLists s;
  s.thresholds = carver.take<float>(queries);
  s.uppers = carver.take<float>(queries * k);
  s.counts = carver.take<int>(queries);
  s.candidates = carver.take<Candidate>(queries * kCandidates);
  s.lists = carver.take<Neighbor>(queries * k);
  s.k = k;
  return s;
}

// What the slices have found, one after another, to the results.
template <class X, class Slices>
void merge_and_store(const NeighborParams& p, const QueryBlock& block, const Slices& slices) {
  for (int q = 0; q < block.queries; ++q) {
    Neighbor* list = slices[0].lists + q * p.k;
    for (size_t s = 1; s < slices.size(); ++s)
      for (int c = 0; c < p.k; ++c) add_neighbor(list, p.k, slices[s].lists[q * p.k + c]);
    store_neighbors<X>(p, block.row(q), list);
  }
}

}  // namespace fastebm
