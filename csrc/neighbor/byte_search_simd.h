// The whole search by bytes. Included for each instruction set, after neighbor/byte_sample_simd.h.

template <class X, class Y>
void byte_search(const NeighborParams& p, ByteScratch& scratch, const Rest& rest,
                 const ParallelFor& parallel_for) {
  bool pays = bytes_pay<X, Y>(p, scratch);
  const int64_t tiles = (p.m + kByteRows - 1) / kByteRows;
  const int64_t slices = static_cast<int64_t>(scratch.slices.size());
  int64_t q0 = 0;
  for (; pays && q0 < p.n; q0 += scratch.most_queries) {
    ByteBlock block = scratch.block;
    block.hold({q0, std::min(scratch.most_queries, p.n - q0)});
    block.panels = (block.queries + kBytePanel - 1) / kBytePanel;
    pack_block<X>(p, block, parallel_for);
    parallel_for(slices, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s)
        search_byte_slice<X, Y>(p, block, scratch.slices[s], s * tiles / slices * kByteRows,
                                std::min((s + 1) * tiles / slices * kByteRows, p.m));
    });
    int64_t given_up = 0;
    for (int q = 0; q < block.queries; ++q)
      if (std::any_of(scratch.slices.begin(), scratch.slices.end(),
                      [=](const ByteSlice& s) { return s.rescored[q] == kGivenUp; }))
        scratch.given_up[given_up++] = block.row(q);
    merge_and_store<X>(p, block, scratch.slices);
    if (given_up) rest({0, given_up, scratch.given_up});
    pays = given_up <= block.queries / 2;
  }
  if (q0 < p.n) rest({q0, p.n - q0});
}
