#pragma once

#include <cstdint>
#include <vector>

#include "lighthouse/data/batch.h"
#include "lighthouse/data/document_ends.h"
#include "lighthouse/data/source.h"
#include "lighthouse/data/tokens.h"

namespace lighthouse::data {

/// What rows know of the documents that they hold.
struct RowDocuments {
  /// M, the most documents of a row, inside which attention stays; so the last token of
  /// a document has no target. 0: attention crosses.
  int64_t most = 0;
  Positions positions = Positions::kRow;
};

/// Streams training tokens without end, epoch after epoch. An epoch is all pieces, one after the
/// other, in an order that is a fixed function of (seed, epoch). A piece is a document; those of
/// more than kPiece tokens count as several, so that one large file is shuffled too. Where it is
/// not known where documents end, which is so of token files, a piece is kPiece tokens.
///
/// With a block of tokens documents stay whole, and their stream is cut into such blocks, which are
/// shuffled in turn; what is left at the end of an epoch stays there. Without, as many sequences of
/// a long document come one after the other as it holds, and so do the steps that train on them.
///
/// Batches are cut off the stream as it flows: of B sequences of N tokens, sequence b begins at
/// position + b N. So every byte is an input once an epoch, whatever contexts and batches are asked
/// for, and the position, one number, is all the state there is.
class Loader {
 public:
  static constexpr uint64_t kPiece = uint64_t{1} << 20;

  /// @param block tokens of a block; 0: none
  /// @throws std::invalid_argument where there are no tokens
  Loader(Tokens tokens, DocumentEnds document_ends, uint64_t seed, int64_t vocabulary = 256,
         uint64_t block = 0);

  /// Tokens, targets, and what `documents` asks for, on the CPU. A document ends too where the
  /// stream goes on with another piece or block than that which follows.
  /// Throws std::invalid_argument unless `batch` and `context` are 1 or more, or where a row has
  /// too many documents; std::runtime_error where a token is not of the vocabulary.
  Batch next(int64_t batch, int64_t context, const RowDocuments& documents = {});

  /// The most documents of a row of those that `next` would cut there, as RowDocuments counts them.
  /// Reads nothing of text; of token files all that the rows hold.
  int64_t most_documents(uint64_t position, int64_t batch, int64_t context);

  /// Tokens handed out so far; seeking restores the stream from there, bit for bit.
  uint64_t position() const { return position_; }
  void seek(uint64_t position) { position_ = position; }
  uint64_t epoch() const { return position_ / tokens_.size(); }

 private:
  /// Tokens of the corpus, from `begin` up to `end`.
  struct Piece {
    uint64_t begin, end;
  };

  /// Makes `order_`, `ends_` and `blocks_` those of that epoch.
  void shuffle(uint64_t epoch);
  /// What follows `position` in the stream, up to the end of its piece or block.
  Piece rest_of_piece(uint64_t position);

  Tokens tokens_;
  DocumentEnds document_ends_;
  uint64_t seed_;
  int64_t vocabulary_;
  uint64_t block_;  ///< tokens; all of them where there are no blocks
  uint64_t position_ = 0;
  uint64_t shuffled_epoch_;
  std::vector<uint64_t> pieces_;  ///< where each piece begins, and where the last one ends
  std::vector<uint64_t> order_;   ///< which piece comes when in the epoch
  std::vector<uint64_t> ends_;    ///< where each piece of `order_` ends in the epoch
  std::vector<uint64_t> blocks_;  ///< which whole block of these pieces comes when
};

/// Held-out batches, on the CPU, of one sequence of `context` tokens each: at most `sequences`,
/// evenly spread over the tokens and without overlap, the same in every call. Throws
/// std::invalid_argument where the tokens are too few for one, a count is below 1, or a row has too
/// many documents; std::runtime_error where a token is not of the vocabulary.
std::vector<Batch> held_out_batches(const Tokens& tokens, int64_t sequences, int64_t context,
                                    int64_t vocabulary = 256, const DocumentEnds& ends = {},
                                    const RowDocuments& documents = {});

}  // namespace lighthouse::data
