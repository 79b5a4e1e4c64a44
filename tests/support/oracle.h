#pragma once

#include <vector>

#include "lighthouse/core/config.h"
#include "tests/support/array.h"

/// The method, read literally: float64, dense matrices, no thought of speed. It shares nothing with
/// the library but the settings, so that a mistake in one is not in the other.
///
/// Symbols: B batch, H query heads, G key/value heads, N tokens, D head dimension, S rows, E
/// entries above level 0, numbered level 1 first, then level 2 and so on.
namespace lighthouse::testing::oracle {

/// Two scores of each token (B, H or G, N), or of each coarse entry (B, G, E).
struct Scores {
  Array q;
  Array k;
};

struct Qkv {
  Array q;  ///< (B, H, ., D)
  Array k;  ///< (B, G, ., D)
  Array v;  ///< (B, G, ., D)
};

/// What a selection is, in the terms of the library: (B, G, S), and (B, G, E) of 2 row + refined,
/// or -1.
struct Maps {
  Array rows;
  Array slots;
};

/// Documents packed into the rows of a batch. By default a row is one document.
struct Documents {
  std::vector<std::vector<int64_t>> starts;  ///< of each row: 0 first, rising, below N
  int64_t most = 1;                          ///< M, documents that a row may have
};

Scores norm_scores(const Array& q, const Array& k);
Scores dilated_scores(const Qkv& x, int64_t dilation, double scale);
/// Scores of coarse entries from those of tokens.
Scores pool(const Scores& tokens, const Config& config, const Documents& documents = {});
Maps select(const Scores& scores, int64_t tokens, const Config& config,
            const Documents& documents = {});
/// The length of the gathered sequence, from the formula alone.
int64_t length(int64_t tokens, const Config& config, const Documents& documents = {});
/// The entries of all levels.
int64_t entries(int64_t tokens, const Config& config, const Documents& documents = {});

/// The means of the rows' windows: (B, H, N, D) -> (B, H, S, D).
Array gather(const Array& x, const Array& rows, const Config& config,
             const Documents& documents = {});
/// The adjoint, with the tokens of the result.
Array gather_adjoint(const Array& grad, const Array& rows, int64_t tokens, const Config& config,
                     const Documents& documents = {});
Array scatter(const Array& gathered, const Array& rows, int64_t tokens, const Config& config,
              const Documents& documents = {});
Array scatter_adjoint(const Array& grad, const Array& rows, const Config& config);

/// The output of attention and the log-sum-exp of its scores; or the gradients of both.
struct Attended {
  Array out;  ///< (B, H, ., D)
  Array lse;  ///< (B, H, .)
};

/// Causal attention, and its gradients given those of its results.
/// @param sequences (B, 1 or G, .): a row attends to rows of its own number alone; empty: to all
Attended attend(const Qkv& x, double scale, const Array& sequences = {});
Qkv attend_adjoint(const Qkv& x, const Attended& grad, double scale, const Array& sequences = {});

/// How a sequence is cut into pieces: at `shift`, `shift` + `length`, and so on.
struct Cut {
  int64_t length;
  int64_t shift;
};

/// Causal attention inside each piece.
Attended attend_pieces(const Qkv& x, const Cut& cut, double scale, const Documents& documents = {});
Qkv attend_pieces_adjoint(const Qkv& x, const Cut& cut, const Attended& grad, double scale,
                          const Documents& documents = {});

/// Near, of (B, H, N), and far, of (B, H, S), as one softmax, with its log-sum-exp.
Attended merge(const Attended& near, const Attended& far, const Array& rows, const Config& config,
               const Documents& documents = {});

/// The gradients of both branches' outputs and log-sum-exps, given that of the merged output.
struct MergeGradients {
  Attended near;
  Attended far;
};
MergeGradients merge_adjoint(const Attended& near, const Attended& far, const Array& rows,
                             const Config& config, const Array& grad_out,
                             const Documents& documents = {});

/// All of it, given the selection; without pieces, or with them.
Array attention(const Qkv& x, const Array& rows, const Config& config);
Qkv attention_adjoint(const Qkv& x, const Array& grad_out, const Array& rows, const Config& config);
Array attention(const Qkv& x, const Array& rows, const Config& config, const Cut& cut,
                const Documents& documents = {});
Qkv attention_adjoint(const Qkv& x, const Array& grad_out, const Array& rows, const Config& config,
                      const Cut& cut, const Documents& documents = {});

}  // namespace lighthouse::testing::oracle
