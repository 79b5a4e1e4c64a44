#include "lighthouse/kernels/merge.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lighthouse/kernels/cpu/row.h"
#include "lighthouse/kernels/merge_weights.h"

namespace lighthouse::cpu {
namespace {

/// What a position hears above level 0: its mass, and in `sum` its rows, each times its mass
/// relative to the largest.
template <class T>
CoarseMass<accumulator_t<T>> sum_coarse(const Merge<T>& args, const Slot* slots, int64_t b,
                                        int64_t h, int64_t position, int64_t document,
                                        accumulator_t<T>* sum) {
  const Geometry& g = args.geometry;
  const auto for_each_row = [&](const auto& f) {
    for (int64_t level = g.root_level(); level > 0; --level) {
      const int64_t row = heard_row(g, slots, level, position, document);
      if (row >= 0) f(row, *args.gathered_lse.at(b, h, row));
    }
  };
  CoarseMass<accumulator_t<T>> mass;
  for_each_row([&](int64_t /*row*/, accumulator_t<T> lse) { mass.add(lse); });
  zero_row(args.shape.dim, sum);
  for_each_row([&](int64_t row, accumulator_t<T> lse) {
    const accumulator_t<T> weight = has_mass(lse) ? relative_mass(lse, mass.most) : 0;
    if (weight != 0) add_scaled_row(args.gathered_out.at(b, h, row), weight, args.shape.dim, sum);
  });
  return mass;
}

}  // namespace

template <class T>
void merge(const Merge<T>& args, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const int64_t dim = args.shape.dim;
  const int64_t positions = args.documents.positions(g);
  const int64_t windows = merge_windows(g, args.documents);
  std::vector<Acc> coarse(dim);
  std::vector<Acc> sum(dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / windows;
    const int64_t first = item % windows * g.pooling - 1;
    for (int64_t h = 0; h < args.shape.heads; ++h) {
      const Slot* slots =
          args.slots + (b * args.shape.groups + args.shape.group(h)) * g.coarse_entries();
      CoarseMass<Acc> mass;
      for (int64_t u = std::max<int64_t>(first, 0); u < std::min(first + g.pooling, positions);
           ++u) {
        const auto [j, document] = args.documents.place(g, b, u);
        // The same for all positions but where a document begins between them.
        if (u == first || u == document) {
          mass = sum_coarse(args, slots, b, h, u, document, coarse.data());
        }
        if (j < 0) continue;
        const int64_t row = heard_row(g, slots, 0, u);
        const MergeWeights<Acc> weights =
            merge_weights(*args.near_lse.at(args.pieces, b, h, j), mass, row >= 0,
                          row >= 0 ? *args.gathered_lse.at(b, h, row) : Acc{});
        zero_row(dim, sum.data());
        const auto add = [&](const auto* of, Acc weight) {
          if (weight != 0) add_scaled_row(of, weight, dim, sum.data());
        };
        add(args.near_out.at(args.pieces, b, h, j), weights.near);
        add(coarse.data(), weights.coarse);
        if (row >= 0) add(args.gathered_out.at(b, h, row), weights.token);
        store_row(sum.data(), dim, args.out.at(b, h, j));
        args.lse[args.pieces.lse_index(args.shape.heads, b, h, j)] = weights.lse;
      }
    }
  }
}

template <class T>
void merge_backward(const MergeBackward<T>& args, int64_t begin, int64_t end) {
  using Acc = accumulator_t<T>;
  const Geometry& g = args.geometry;
  const int64_t dim = args.shape.dim;
  std::vector<Acc> sum(dim);
  std::vector<Acc> products(dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / g.rows;
    const int64_t s = item % g.rows;
    for (int64_t h = 0; h < args.shape.heads; ++h) {
      const int64_t group = b * args.shape.groups + args.shape.group(h);
      const Slot* slots = args.slots + group * g.coarse_entries();
      const int64_t id = args.rows[group * g.rows + s];
      const int64_t level = g.level(id);
      const int64_t position = g.first_hearer(level, id - g.first[level]);
      const auto [first, count] = args.documents.range(g, b, position, g.window[level]);
      const int64_t document = args.documents.place(g, b, position).document;
      zero_row(dim, sum.data());
      zero_row(dim, products.data());
      for (int64_t j = first; j < first + count; ++j) {
        const Acc weight = row_weight(*args.gathered_lse.at(b, h, s),
                                      args.lse[args.pieces.lse_index(args.shape.heads, b, h, j)],
                                      heard_rows(g, slots, position + (j - first), document));
        if (weight == 0) continue;
        add_scaled_row_and_product(args.grad_out.at(b, h, j), args.out.at(b, h, j), weight, dim,
                                   sum.data(), products.data());
      }
      T* grad = args.grad_gathered_out.at(b, h, s);
      T* out = args.backward_out.at(b, h, s);
      store_row(sum.data(), dim, grad);
      double dot = 0;
      double square = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const auto x = static_cast<double>(static_cast<Acc>(grad[d]));
        dot += static_cast<double>(products[d]);
        square += x * x;
      }
      const double factor = backward_factor(dot, square);
      for (int64_t d = 0; d < dim; ++d) {
        const auto x = static_cast<double>(static_cast<Acc>(grad[d]));
        out[d] = static_cast<T>(static_cast<Acc>(bounded(x * factor, kLargest<T>)));
      }
    }
  }
}

#define INSTANTIATE(T)                                    \
  template void merge(const Merge<T>&, int64_t, int64_t); \
  template void merge_backward(const MergeBackward<T>&, int64_t, int64_t);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cpu
