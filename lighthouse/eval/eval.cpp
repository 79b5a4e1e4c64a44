#include "lighthouse/eval/eval.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>

#include "lighthouse/core/check.h"
#include "lighthouse/eval/evaluating.h"

namespace lighthouse::eval {
namespace {

struct Distances {
  int64_t first, last;
};
constexpr std::array<Distances, 5> kBins{{{1, 1}, {2, 4}, {5, 16}, {17, 64}, {65, 256}}};

/// Mean and standard error of a sample.
class Sample {
 public:
  void add(double value) {
    // Welford's update: exact zeros stay exact.
    const double deviation = value - mean_;
    mean_ += deviation / ++count_;
    squares_ += deviation * (value - mean_);
  }
  double count() const { return count_; }
  double standard_error() const { return std::sqrt(squares_ / (count_ - 1) / count_); }
  Estimate estimate() const { return {mean_, standard_error()}; }

 private:
  double count_ = 0, mean_ = 0, squares_ = 0;
};

}  // namespace

HeldOutLoss held_out_loss(model::LanguageModel& model, const std::vector<data::Batch>& batches,
                          bool as_trained, const std::function<void()>& before_batch,
                          const distributed::Mesh& mesh) {
  check_argument(!batches.empty(), "there are 0 held-out batches; at least 1 is needed");
  const int64_t context = batches[0].tokens.size(1);
  for (const data::Batch& batch : batches) {
    check_argument(batch.tokens.size(1) == context, "held-out sequences have ", context, " and ",
                   batch.tokens.size(1), " tokens; all must have the same length");
  }
  const Evaluating evaluating(model, as_trained);
  std::vector<Bin> bins;
  for (int64_t first = 0, end = 64; first < context; first = end, end *= 2) {
    bins.push_back({first, std::min(end, context) - 1, {}});
  }
  std::vector<double> sums;  // and counts, of each sequence, as a whole and of each bin
  for (size_t i = 0; i < batches.size(); ++i) {
    const auto number = static_cast<int64_t>(i);
    if (before_batch && number % mesh.data.size() == 0) before_batch();
    const int64_t sequences = batches[i].tokens.size(0);
    if (!measures(mesh.data, number)) {
      sums.resize(sums.size() + 2 * static_cast<size_t>(sequences) * (1 + bins.size()));
      continue;
    }
    const data::Batch batch = batches[i].to(model.device());
    const at::Tensor losses = model.whole_token_losses(batch).to(at::kCPU, at::kDouble);
    const at::Tensor places = batches[i].places_in_documents().cpu();
    const at::Tensor counted = batches[i].targets.ne(data::kNoTarget).cpu();
    for (int64_t b = 0; b < sequences; ++b) {
      const auto add = [&](const Bin& bin) {
        const at::Tensor in_bin = places[b].ge(bin.first).logical_and_(places[b].le(bin.last));
        const at::Tensor found = losses[b].masked_select(in_bin.logical_and_(counted[b]));
        sums.push_back(found.sum().item<double>());
        sums.push_back(static_cast<double>(found.numel()));
      };
      add({0, context - 1, {}});
      for (const Bin& bin : bins) add(bin);
    }
  }
  share(sums, mesh.data);
  Sample all;
  std::vector<Sample> of_bins(bins.size());
  std::vector<double> of_sequences;
  for (auto sum = sums.begin(); sum != sums.end(); sum += 2) {
    const auto place = static_cast<size_t>(sum - sums.begin()) / 2 % (1 + bins.size());
    if (sum[1] == 0) continue;
    const double mean = sum[0] / sum[1];
    if (place == 0) of_sequences.push_back(mean);
    (place == 0 ? all : of_bins[place - 1]).add(mean);
  }
  check_argument(all.count() > 0, "the held-out sequences have 0 tokens with a target; at least 1 ",
                 "is needed");
  std::vector<Bin> by_position;
  for (size_t i = 0; i < bins.size(); ++i) {
    if (of_bins[i].count() == 0) continue;
    by_position.push_back({bins[i].first, bins[i].last, of_bins[i].estimate()});
  }
  return {all.estimate(), by_position, of_sequences};
}

double token_frequency_loss(const data::Tokens& train, const data::Tokens& held_out,
                            int64_t vocabulary) {
  check_argument(!held_out.empty(), "there are 0 held-out tokens; at least 1 is needed");
  const auto counts_of = [&](const data::Tokens& tokens, double least) {
    std::vector<double> counts(static_cast<size_t>(vocabulary), least);
    std::vector<int64_t> ids;
    const uint64_t all = std::min(tokens.size(), uint64_t{1} << 26);
    for (uint64_t begin = 0; begin < all; begin += ids.size()) {
      ids.resize(std::min<uint64_t>(all - begin, 1 << 20));
      tokens.copy(begin, ids.size(), vocabulary, ids.data());
      for (const int64_t id : ids) ++counts[static_cast<size_t>(id)];
    }
    return counts;
  };
  const auto counts = counts_of(train, 1), held_out_counts = counts_of(held_out, 0);
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double loss = 0;
  for (size_t id = 0; id < counts.size(); ++id) {
    loss -= held_out_counts[id] * std::log(counts[id] / total);
  }
  return loss / std::accumulate(held_out_counts.begin(), held_out_counts.end(), 0.0);
}

std::vector<Bin> selection_leak(model::LanguageModel& model,
                                const std::vector<data::Batch>& batches, int64_t cuts,
                                uint64_t seed, bool as_trained, const distributed::Mesh& mesh) {
  check_argument(!batches.empty(), "there are 0 held-out batches; at least 1 is needed");
  check_argument(cuts >= 1, "the number of cuts is ", cuts, "; it must be 1 or more");
  for (const data::Batch& batch : batches) {
    check_argument(batch.tokens.size(1) >= 2, "a held-out sequence has ", batch.tokens.size(1),
                   " tokens; 2 or more are needed to cut it");
  }
  const Evaluating evaluating(model, as_trained);
  const auto vocabulary = static_cast<uint64_t>(model.vocabulary());
  std::mt19937_64 random(seed);  // every rank draws what one process would
  std::vector<double> rises;     // of the sequences of each cut, for each bin that it has
  std::vector<size_t> bins;      // which one each is of
  for (size_t number = 0; number < batches.size(); ++number) {
    const bool is_own = measures(mesh.data, static_cast<int64_t>(number));
    const data::Batch batch = is_own ? batches[number].to(model.device()) : batches[number];
    const int64_t sequences = batch.tokens.size(0), length = batch.tokens.size(1);
    const at::Tensor before =
        is_own ? model.whole_token_losses(batch).to(at::kDouble) : at::Tensor();
    const at::Tensor counted = batch.targets.ne(data::kNoTarget).cpu();
    // Early cuts are left out where the sequence is long enough to fill every bin without them.
    const int64_t earliest = std::min(kBins.back().last, length / 2);
    for (int64_t i = 0; i < cuts; ++i) {
      const auto choices = static_cast<uint64_t>(length - earliest);
      const int64_t cut = earliest + static_cast<int64_t>(random() % choices);
      at::Tensor rise;
      if (is_own) {
        at::Tensor shifts = at::empty({sequences, length - cut}, at::kLong);
        int64_t* shift = shifts.data_ptr<int64_t>();
        std::generate_n(shift, shifts.numel(),
                        [&] { return static_cast<int64_t>(1 + random() % (vocabulary - 1)); });
        data::Batch changed = batch;
        changed.tokens = batch.tokens.clone();
        changed.tokens.narrow(1, cut, length - cut)
            .add_(shifts.to(model.device()))
            .remainder_(model.vocabulary());
        rise = (model.whole_token_losses(changed).to(at::kDouble) - before).cpu();
      } else {
        random.discard(static_cast<uint64_t>(sequences * (length - cut)));
      }
      for (size_t bin = 0; bin < kBins.size(); ++bin) {
        const int64_t begin = std::max<int64_t>(0, cut - kBins[bin].last);
        const int64_t end = cut - kBins[bin].first + 1;
        if (begin >= end) continue;
        for (int64_t b = 0; b < sequences; ++b) {
          const at::Tensor in_bin = counted[b].slice(0, begin, end);
          if (!in_bin.any().item<bool>()) continue;
          rises.push_back(
              is_own ? rise[b].slice(0, begin, end).masked_select(in_bin).mean().item<double>()
                     : 0);
          bins.push_back(bin);
        }
      }
    }
  }
  share(rises, mesh.data);
  std::array<Sample, kBins.size()> samples;
  for (size_t i = 0; i < rises.size(); ++i) samples[bins[i]].add(rises[i]);
  std::vector<Bin> leak;
  for (size_t bin = 0; bin < kBins.size(); ++bin) {
    if (samples[bin].count() == 0) continue;
    leak.push_back({kBins[bin].first, kBins[bin].last, samples[bin].estimate()});
  }
  return leak;
}

}  // namespace lighthouse::eval
