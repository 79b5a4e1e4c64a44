#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "lighthouse/core/dtype.h"
#include "lighthouse/kernels/gather.h"
#include "lighthouse/kernels/merge.h"
#include "lighthouse/kernels/scatter.h"
#include "lighthouse/kernels/score.h"
#include "lighthouse/kernels/select.h"
#include "tests/kernels/buffer.h"
#include "tests/support/cases.h"
#include "tests/support/compare.h"

namespace lighthouse::testing {

using AllTypes = ::testing::Types<float, double, BFloat16, Float16>;

template <class T>
constexpr Rounding rounding() {
  if constexpr (std::is_same_v<T, double>) return kFloat64;
  if constexpr (std::is_same_v<T, float>) return kFloat32;
  if constexpr (std::is_same_v<T, BFloat16>) return kBFloat16;
  if constexpr (std::is_same_v<T, Float16>) return kFloat16;
}

template <class T>
T store(double value) {
  if constexpr (std::is_same_v<T, double>) return value;
  return T(static_cast<float>(value));
}

template <class T>
double load(T value) {
  return static_cast<double>(static_cast<accumulator_t<T>>(value));
}

/// The nearest values of T: inputs must be the same on both sides.
template <class T>
Array rounded(Array array) {
  for (double& value : array.values) value = load(store<T>(value));
  return array;
}

template <class T>
oracle::Qkv rounded(oracle::Qkv x) {
  return {rounded<T>(std::move(x.q)), rounded<T>(std::move(x.k)), rounded<T>(std::move(x.v))};
}

inline Shape shape_of(const Case& c) { return {c.batch, c.heads, c.groups, c.dim}; }

template <class T>
Array to_array(const std::vector<T>& values, std::vector<int64_t> shape) {
  Array array(std::move(shape));
  EXPECT_EQ(array.values.size(), values.size());
  std::transform(values.begin(), values.end(), array.values.begin(), load<T>);
  return array;
}

inline Array to_array(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
  Array array(std::move(shape));
  EXPECT_EQ(array.values.size(), values.size());
  array.values.assign(values.begin(), values.end());
  return array;
}

template <class To>
std::vector<To> to_vector(const Array& array) {
  std::vector<To> result;
  for (const double value : array.values) result.push_back(static_cast<To>(value));
  return result;
}

/// A (B, H, N, D) array in a layout drawn at random: heads or tokens first, with gaps between the
/// rows. Gaps and, at first, elements hold a NaN, so that what is not written shows, and what
/// is written beside it.
template <class T>
class Strided {
 public:
  Strided(Random& random, std::vector<int64_t> shape) : shape_(std::move(shape)) {
    // For what moves 16 bytes at once some keep an alignment to them; of others the rows, or the
    // first, are off it.
    const int64_t kind = draw(random, 0, 2);
    const int64_t row = shape_[3] + draw(random, 0, 3) * (kind == 0 ? 1 : 8);
    offset_ = kind == 1 ? draw(random, 1, 3) : 0;
    const bool heads_first = draw(random, 0, 1) != 0;
    rows_.head_stride = heads_first ? shape_[2] * row : row;
    rows_.row_stride = heads_first ? row : shape_[1] * row;
    rows_.batch_stride = shape_[1] * shape_[2] * row;
    elements_.assign(offset_ + shape_[0] * rows_.batch_stride, garbage());
    buffer_ = Buffer<T>(elements_);
    rows_.data = buffer_.data() + offset_;
  }
  Strided(Random& random, const Array& array) : Strided(random, array.shape) {
    size_t next = 0;
    for_each([&](T& element) { element = store<T>(array.values[next++]); });
    buffer_ = Buffer<T>(elements_);
    rows_.data = buffer_.data() + offset_;
  }
  Strided(const Strided&) = delete;
  Strided& operator=(const Strided&) = delete;

  Rows<T> rows() const { return rows_; }
  Rows<const T> const_rows() const {
    return {rows_.data, rows_.batch_stride, rows_.head_stride, rows_.row_stride};
  }

  /// The elements; fails where a gap was written to.
  Array array() {
    Array result(shape_);
    elements_ = buffer_.values();
    size_t next = 0;
    for_each([&](T& element) {
      result.values[next++] = load(element);
      element = garbage();
    });
    for (const T value : elements_) EXPECT_TRUE(std::isnan(load(value))) << "a gap was written to";
    return result;
  }

 private:
  static T garbage() { return store<T>(std::numeric_limits<double>::quiet_NaN()); }

  template <class F>
  void for_each(const F& f) {
    for (int64_t b = 0; b < shape_[0]; ++b)
      for (int64_t h = 0; h < shape_[1]; ++h)
        for (int64_t n = 0; n < shape_[2]; ++n)
          for (int64_t d = 0; d < shape_[3]; ++d)
            f(elements_[offset_ + b * rows_.batch_stride + h * rows_.head_stride +
                        n * rows_.row_stride + d]);
  }

  std::vector<int64_t> shape_;
  int64_t offset_ = 0;  // of the first element
  std::vector<T> elements_;
  Buffer<T> buffer_;
  Rows<T> rows_;
};

/// A (B, H, N, D) array cut into pieces: a Strided for each segment.
template <class T>
class Segments {
 public:
  Segments(Random& random, const Pieces& pieces, const Array& array) {
    for (const auto segment : {Pieces::kWhole, Pieces::kFirst, Pieces::kLast}) {
      const auto [begin, count, length] = pieces.range(segment);
      if (count == 0) continue;
      Array cut({array.size(0) * count, array.size(1), length, array.size(3)});
      for (int64_t i = 0; i < cut.size(0); ++i)
        for (int64_t h = 0; h < cut.size(1); ++h)
          for (int64_t j = 0; j < length; ++j)
            for (int64_t d = 0; d < cut.size(3); ++d)
              cut(i, h, j, d) = array(i / count, h, begin + i % count * length + j, d);
      segments_[segment] = std::make_unique<Strided<T>>(random, cut);
    }
  }

  PieceRows<const T> const_rows() const {
    PieceRows<const T> rows;
    for (int i = 0; i < Pieces::kSegments; ++i)
      if (segments_[i]) rows.segment[i] = segments_[i]->const_rows();
    return rows;
  }

 private:
  std::unique_ptr<Strided<T>> segments_[Pieces::kSegments];
};

/// Pieces of any length, in half of the cases shifted; some longer than the sequence.
inline Pieces random_pieces(Random& random, int64_t tokens) {
  const int64_t length = draw(random, 1, tokens + 3);
  return {tokens, length, draw(random, 0, 1) != 0 ? draw(random, 0, length - 1) : 0};
}

/// Calls kernel(begin, end) for pieces of [0, items) in an order drawn at random: work items must
/// not depend on each other.
template <class Kernel>
void in_pieces(Random& random, int64_t items, const Kernel& kernel) {
  std::vector<int64_t> cuts{0, items};
  for (int64_t i = draw(random, 0, 3); i > 0; --i) cuts.push_back(draw(random, 0, items));
  std::sort(cuts.begin(), cuts.end());
  std::vector<size_t> order(cuts.size() - 1);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), random);
  for (const size_t i : order) kernel(cuts[i], cuts[i + 1]);
}

/// Runs a stage's kernel: here, over all of its work items.
#ifdef LIGHTHOUSE_TEST_CUDA
#define LIGHTHOUSE_RUN(kernel, items) cuda::kernel(args, nullptr)
#define LIGHTHOUSE_RUN_WITH_WORKSPACE(kernel, items, bytes) \
  const Buffer<uint8_t> workspace(bytes, 0xa5);             \
  cuda::kernel(args, workspace.data(), nullptr)
#else
#define LIGHTHOUSE_RUN(kernel, items) \
  in_pieces(random, items, [&](int64_t begin, int64_t end) { cpu::kernel(args, begin, end); })
#define LIGHTHOUSE_RUN_WITH_WORKSPACE(kernel, items, bytes) LIGHTHOUSE_RUN(kernel, items)
#endif

template <class T>
void run([[maybe_unused]] Random& random, const Score<T>& args) {
  LIGHTHOUSE_RUN_WITH_WORKSPACE(score, args.shape.batch * args.geometry.roots,
                                cuda::score_workspace_bytes(args));
}
inline void run([[maybe_unused]] Random& random, const PoolScores& args) {
  LIGHTHOUSE_RUN(pool_scores, args.shape.batch * args.geometry.roots);
}
inline void run([[maybe_unused]] Random& random, const Select& args) {
  LIGHTHOUSE_RUN_WITH_WORKSPACE(select, args.shape.batch * args.shape.groups * args.geometry.tiles,
                                cuda::select_workspace_bytes(args.geometry, args.shape));
}
template <class T>
void run([[maybe_unused]] Random& random, const Gather<T>& args) {
  LIGHTHOUSE_RUN(gather, args.shape.batch * args.geometry.rows);
}
template <class T>
void run([[maybe_unused]] Random& random, const GatherBackward<T>& args) {
  LIGHTHOUSE_RUN(gather_backward, args.shape.batch * args.geometry.roots);
}
template <class T>
void run([[maybe_unused]] Random& random, const Scatter<T>& args) {
  LIGHTHOUSE_RUN(scatter, args.shape.batch * cpu::scatter_windows(args.geometry));
}
template <class T>
void run([[maybe_unused]] Random& random, const ScatterBackward<T>& args) {
  LIGHTHOUSE_RUN(scatter_backward, args.shape.batch * args.geometry.rows);
}
template <class T>
void run([[maybe_unused]] Random& random, const Merge<T>& args) {
  LIGHTHOUSE_RUN(merge, args.shape.batch * cpu::merge_windows(args.geometry, args.documents));
}
template <class T>
void run([[maybe_unused]] Random& random, const MergeBackward<T>& args) {
  LIGHTHOUSE_RUN(merge_backward, args.shape.batch * args.geometry.rows);
}
#undef LIGHTHOUSE_RUN_WITH_WORKSPACE
#undef LIGHTHOUSE_RUN

/// A problem as random_case gives it; in half of the cases rows can be moved 16 bytes at a time.
inline Case kernel_case(Random& random) {
  Case c = random_case(random);
  constexpr int64_t kDims[] = {8, 16, 24, 64};
  if (draw(random, 0, 1)) c.dim = kDims[draw(random, 0, 3)];
  return c;
}

/// The same, in half of the cases with documents.
inline Case packed_case(Random& random) {
  Case c = kernel_case(random);
  if (draw(random, 0, 1)) c.documents = random_documents(random, c.batch, c.tokens);
  return c;
}

inline Geometry geometry_of(const Case& c) { return {c.tokens, c.config, c.documents.most}; }

/// The table of roots of a case, where the kernels reach it; none where it has no documents, or
/// where roots are tokens.
class RootTable {
 public:
  explicit RootTable(const Case& c) {
    const Geometry g = geometry_of(c);
    if (c.documents.starts.empty() || g.levels == 1) return;
    std::vector<Root> roots(c.batch * g.roots, Root{0, 0, 0});
    for (int64_t b = 0; b < c.batch; ++b) {
      std::vector<int64_t> borders = c.documents.starts[b];
      borders.push_back(c.tokens);
      Root* next = roots.data() + b * g.roots;
      for (size_t d = 0; d + 1 < borders.size(); ++d)
        for (int64_t first = borders[d]; first < borders[d + 1]; first += g.root_window())
          *next++ = {static_cast<int32_t>(first), static_cast<int32_t>(borders[d]),
                     static_cast<int32_t>(borders[d + 1])};
    }
    roots_ = Buffer<Root>(roots);
  }
  Documents documents() const { return {roots_.data()}; }

 private:
  Buffer<Root> roots_;
};

/// A selection by scores drawn at random.
inline oracle::Maps random_maps(Random& random, const Case& c) {
  const int64_t coarse = geometry_of(c).coarse_entries();
  return oracle::select(
      {normals(random, {c.batch, c.groups, coarse}), normals(random, {c.batch, c.groups, coarse})},
      c.tokens, c.config, c.documents);
}

}  // namespace lighthouse::testing
