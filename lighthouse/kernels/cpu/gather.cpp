#include "lighthouse/kernels/gather.h"

#include <utility>
#include <vector>

#include "lighthouse/kernels/cpu/descend.h"

namespace lighthouse::cpu {
namespace {

/// The mean of the tokens of a window of that level; zeros where it has none.
template <class T>
void mean(const Rows<const T>& tokens, int64_t b, int64_t h, int64_t level,
          const TokenRange& window, int64_t dim, T* out, accumulator_t<T>* sum) {
  const auto [first, present] = window;
  if (present == 0) {
    zero_row(dim, out);
  } else if (level == 0) {
    copy_row(tokens.at(b, h, first), dim, out);
  } else {
    zero_row(dim, sum);
    add_rows(tokens.at(b, h, first), tokens.row_stride, present, dim, sum);
    store_quotient(sum, static_cast<accumulator_t<T>>(present), dim, out);
  }
}

}  // namespace

template <class T>
void gather(const Gather<T>& args, int64_t begin, int64_t end) {
  const Geometry& g = args.geometry;
  const int64_t groups = args.shape.groups;
  const int64_t dim = args.shape.dim;
  const int64_t heads_per_group = args.shape.heads_per_group();
  const int64_t columns = args.shape.columns();
  std::vector<accumulator_t<T>> sum(dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / g.rows;
    const int64_t s = item % g.rows;
    for (int64_t j = 0; j < groups; ++j) {
      const int64_t id = args.rows[(b * groups + j) * g.rows + s];
      const int64_t level = g.level(id);
      const int64_t index = id - g.first[level];
      const bool is_root = level > 0 && level == g.root_level();
      const TokenRange window =
          args.documents.range(g, b, index * g.window[level], g.window[level]);
      // `column` is the head's place in `roots`.
      const auto write = [&](const Rows<const T>& tokens, int64_t h, int64_t column, T* out) {
        if (is_root) {
          copy_row(args.roots + ((b * g.roots + index) * columns + column) * dim, dim, out);
        } else {
          mean(tokens, b, h, level, window, dim, out, sum.data());
        }
      };
      for (int64_t h = j * heads_per_group; h < (j + 1) * heads_per_group; ++h) {
        write(args.q, h, h, args.gathered_q.at(b, h, s));
      }
      write(args.k, j, args.shape.heads + j, args.gathered_k.at(b, j, s));
      write(args.v, j, args.shape.heads + groups + j, args.gathered_v.at(b, j, s));
    }
  }
}

template <class T>
void gather_backward(const GatherBackward<T>& args, int64_t begin, int64_t end) {
  const Geometry& g = args.geometry;
  const int64_t groups = args.shape.groups;
  const int64_t dim = args.shape.dim;
  Descent<T> descent(g, dim);

  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / g.roots;
    const int64_t root = item % g.roots;
    const auto pull = [&](const Rows<const T>& gathered, int64_t h, const Slot* slots,
                          const PieceRows<const T>& near, const Rows<T>& grad) {
      descent.descend(
          root,
          [&](int64_t level, int64_t index) {
            const int64_t s = row_of(g, slots, level, index);
            return std::pair(
                s < 0 ? nullptr : gathered.at(b, h, s),
                args.documents.range(g, b, index * g.window[level], g.window[level]).count);
          },
          [&](int64_t position, const accumulator_t<T>* sum) {
            const int64_t token = args.documents.place(g, b, position).token;
            if (token < 0) return;
            if (args.near.pieces.tokens > 0) {
              store_sum(sum, near.at(args.near.pieces, b, h, token), dim, grad.at(b, h, token));
            } else {
              store_row(sum, dim, grad.at(b, h, token));
            }
          });
    };
    for (int64_t h = 0; h < args.shape.heads; ++h) {
      const Slot* slots = args.slots + (b * groups + args.shape.group(h)) * g.coarse_entries();
      pull(args.grad_gathered_q, h, slots, args.near.q, args.grad_q);
    }
    for (int64_t j = 0; j < groups; ++j) {
      const Slot* slots = args.slots + (b * groups + j) * g.coarse_entries();
      pull(args.grad_gathered_k, j, slots, args.near.k, args.grad_k);
      pull(args.grad_gathered_v, j, slots, args.near.v, args.grad_v);
    }
  }
}

#define INSTANTIATE(T)                                      \
  template void gather(const Gather<T>&, int64_t, int64_t); \
  template void gather_backward(const GatherBackward<T>&, int64_t, int64_t);
LIGHTHOUSE_FOR_EACH_TYPE(INSTANTIATE)
#undef INSTANTIATE

}  // namespace lighthouse::cpu
