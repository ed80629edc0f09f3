// Queries on a grid, and what distances there say of true ones.
//
// Of uint8 references: an element q of a reference stands for reference_value(q), which is offset +
// scale q, rounded. A query is quantised on the same grid, qh = clamp(round((x - offset) / scale),
// 0, 255). With its residual r >= |x - (offset + scale qh)| + |y_j - (offset + scale q_j)|, for all
// j, the triangle inequality says
//   | |x - y_j| - |scale| |qh - q_j| | <= r,
// where |qh - q_j|^2 is an exact integer. From here on all is in steps of the grid: |scale| is one.
//
// Of others the grid is what bfloat16 has, with the residual r >= |x' - xh| + |y'_j - yh_j| of
// centred samples and their roundings; of |xh - yh_j|^2 there are scores, see score_error().
#pragma once
#include <cfloat>
#include <cmath>

#include "neighbor/neighbor.h"

namespace fastebm {

struct ReferenceGrid {
  double scale, offset;
  double inverse;   // 1 / scale; 0: there are no scores on the grid
  double rounding;  // what every residual has for roundings
  double most;      // the largest residual of a query that is on the grid
};

// More than a step an element, which is 3.5 times what rounding to the grid leaves, makes scores
// too loose to tell candidates.
//
// Roundings, of at most `size`: reference_value() has two of 2^-24 of it and less than 2^-148 of
// underflow. In float64, where scale q is exact, the residual of an element has one of 2^-53 of it,
// and relative ones: of a sum over dim < 2^30 elements in 256 parts less than 2^-30.
inline ReferenceGrid reference_grid(const NeighborParams& p) {
  ReferenceGrid grid{p.y_scale, p.y_offset, 0, 0, 0};
  const double step = std::abs(grid.scale), size = std::abs(grid.offset) + 255 * step;
  const double root = std::sqrt(static_cast<double>(p.dim));
  if (p.y_dtype != Dtype::kUint8 || step == 0 || !(size < FLT_MAX)) return grid;
  grid.rounding = (0x1.1p-23 * size + 0x1p-148) / step * root;
  grid.most = root;
  if (grid.rounding < grid.most) grid.inverse = 1 / grid.scale;
  return grid;
}

// A query on the grid.
struct GridQuery {
  double square;    // |qh|^2
  double residual;  // infinity: it is off the grid; NaN: it has a NaN
};

FASTEBM_HD bool is_off_grid(const GridQuery& query) { return query.residual == HUGE_VAL; }

// No reference with a larger |qh - q_j|^2 is among the k nearest, but for rounding, where k of them
// have at most `kth`, ...
FASTEBM_HD double most_beside(double kth, const GridQuery& query) {
  const double distance = sqrt(kth) + 2 * query.residual;
  return distance * distance;
}

// ... and where k references have exact squares of at most `square`.
FASTEBM_HD double most_within(double square, const GridQuery& query, const ReferenceGrid& grid) {
  const double distance = sqrt(square) * fabs(grid.inverse) + query.residual;
  return distance * distance;
}

}  // namespace fastebm
