#include "lighthouse/kernels/scatter.h"

#include <utility>
#include <vector>

#include "lighthouse/kernels/cpu/descend.h"

namespace lighthouse::cpu {

template <class T>
void scatter(const Scatter<T>& args, int64_t begin, int64_t end) {
  const Geometry& g = args.geometry;
  const int64_t groups = args.shape.groups;
  const int64_t dim = args.shape.dim;
  const int64_t windows = scatter_windows(g);
  Descent<T> descent(g, dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / windows;
    for (int64_t h = 0; h < args.shape.heads; ++h) {
      const Slot* slots = args.slots + (b * groups + args.shape.group(h)) * g.coarse_entries();
      // In terms of j + 1 the positions of an entry are a window: that of the entry after it.
      descent.descend(
          item % windows,
          [&](int64_t level, int64_t node) {
            const bool heard = node > 0 && node <= g.entries(level);
            const int64_t s = heard ? row_of(g, slots, level, node - 1) : -1;
            return std::pair(s < 0 ? nullptr : args.gathered_out.at(b, h, s), int64_t{1});
          },
          [&](int64_t node, const accumulator_t<T>* sum) {
            if (node > 0 && node <= g.tokens) store_row(sum, dim, args.out.at(b, h, node - 1));
          });
    }
  }
}

template <class T>
void scatter_backward(const ScatterBackward<T>& args, int64_t begin, int64_t end) {
  const Geometry& g = args.geometry;
  const int64_t groups = args.shape.groups;
  const int64_t dim = args.shape.dim;
  std::vector<accumulator_t<T>> sum(dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / g.rows;
    const int64_t s = item % g.rows;
    for (int64_t h = 0; h < args.shape.heads; ++h) {
      const int64_t id = args.rows[(b * groups + args.shape.group(h)) * g.rows + s];
      const int64_t level = g.level(id);
      const int64_t index = id - g.first[level];
      zero_row(dim, sum.data());
      add_rows(args.grad_out.at(b, h, g.first_hearer(level, index)), args.grad_out.row_stride,
               g.hearers(level, index), dim, sum.data());
      store_row(sum.data(), dim, args.grad_gathered_out.at(b, h, s));
    }
  }
}

#define INSTANTIATE(T)                                        \
  template void scatter(const Scatter<T>&, int64_t, int64_t); \
  template void scatter_backward(const ScatterBackward<T>&, int64_t, int64_t);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cpu
