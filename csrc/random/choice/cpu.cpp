// Distinct slots on a CPU.
#include <algorithm>

#include "random/choice/strata.h"

namespace fastebm {
namespace {

constexpr int kLanes = 8;

// [begin, end) in groups of kLanes, then one by one.
template <class Group, class One>
void for_groups(int64_t begin, int64_t end, Group group, One one) {
  for (; begin + kLanes <= end; begin += kLanes) group(begin);
  for (; begin < end; ++begin) one(begin);
}

}  // namespace

int choose_slots_cpu(const ChoiceParams& p, int64_t begin, int64_t end) {
  ChoiceKey key;
  for (int block = 0; 4 * block < choice_rounds(p); ++block) choice_words(p, block, &key);
  for_groups(
      begin, std::min(end, p.n), [&](int64_t i) { choose<kLanes>(p, key, i); },
      [&](int64_t i) { choose<1>(p, key, i); });
  for_groups(
      std::max(begin - p.n, int64_t{0}), end - p.n, [&](int64_t i) { find<kLanes>(p, key, i); },
      [&](int64_t i) { find<1>(p, key, i); });
  return 0;
}

int choose_strata_cpu(const StrataParams& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) choose_in_stratum(p, i);
  return 0;
}

}  // namespace fastebm
