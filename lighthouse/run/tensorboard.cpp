#include "lighthouse/run/tensorboard.h"

#include <array>
#include <bit>
#include <chrono>
#include <cstring>

#include "lighthouse/core/check.h"

// A file of records (TensorFlow's TFRecord): length, checksum of the length, contents, checksum of
// the contents. Each holds an event, a message of protocol buffers; the numbers of its fields are
// those of TensorFlow's event.proto and summary.proto.

namespace lighthouse::run {
namespace {

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

template <class T>
std::string bytes_of(T value) {
  static_assert(std::endian::native == std::endian::little);
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string key(int field, Wire wire) { return varint(static_cast<uint64_t>(field << 3 | wire)); }

std::string field(int number, uint64_t value) { return key(number, kVarint) + varint(value); }
std::string field(int number, double value) { return key(number, kFixed64) + bytes_of(value); }
std::string field(int number, float value) { return key(number, kFixed32) + bytes_of(value); }
std::string field(int number, std::string_view value) {
  return key(number, kBytes) + varint(value.size()) + std::string(value);
}

// Event
constexpr int kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
// Summary, Summary.Value, SessionLog
constexpr int kValue = 1, kTag = 1, kSimpleValue = 2, kStatus = 1;
constexpr uint64_t kStart = 1;

std::string checksum(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return bytes_of<uint32_t>(std::rotr(crc, 15) + 0xa282ead8u);
}

std::filesystem::path new_file(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  const auto now = static_cast<int64_t>(seconds_since_1970());
  for (int i = 0;; ++i) {
    // TensorBoard reads the files of a folder in the order of their names.
    const std::string name = message("events.out.tfevents.", now, ".lighthouse.", 1000 + i);
    if (!std::filesystem::exists(folder / name)) return folder / name;
  }
}

}  // namespace

TensorBoard::TensorBoard(const std::filesystem::path& folder, int64_t steps_done)
    : file_(new_file(folder)) {
  event(field(kFileVersion, std::string_view("brain.Event:2")));
  event(field(kStep, static_cast<uint64_t>(steps_done + 1)) +
        field(kSessionLog, field(kStatus, kStart)));
}

void TensorBoard::write(const StepMetrics& m) {
  scalar("train/loss", m.step, m.loss);
  scalar("train/lr", m.step, m.lr);
  scalar("train/grad_norm", m.step, m.grad_norm);
  scalar("train/tokens", m.step, static_cast<double>(m.tokens));
  scalar("train/seconds", m.step, m.seconds);
  scalar("train/tokens_per_second", m.step, m.tokens_per_second);
  scalar("train/memory_gib", m.step, static_cast<double>(m.memory_bytes) / (1 << 30));
}

void TensorBoard::write(const EvalMetrics& m) {
  scalar("eval/dense_loss", m.step, m.dense_loss);
  scalar("eval/trained_loss", m.step, m.trained_loss);
}

void TensorBoard::write(const MetricsHistory& history) {
  for (const StepMetrics& step : history.steps) write(step);
  for (const EvalMetrics& eval : history.evals) write(eval);
}

void TensorBoard::scalar(std::string_view tag, int64_t step, double value) {
  const std::string entry = field(kTag, tag) + field(kSimpleValue, static_cast<float>(value));
  event(field(kStep, static_cast<uint64_t>(step)) + field(kSummary, field(kValue, entry)));
}

void TensorBoard::event(std::string_view fields) {
  const std::string contents = field(kWallTime, seconds_since_1970()) + std::string(fields);
  const std::string length = bytes_of<uint64_t>(contents.size());
  file_.append(length + checksum(length) + contents + checksum(contents));
}

uint32_t crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> remainders{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t remainder = i;
      for (int bit = 0; bit < 8; ++bit) {
        remainder = remainder >> 1 ^ ((remainder & 1) != 0 ? 0x82f63b78u : 0);
      }
      remainders[i] = remainder;
    }
    return remainders;
  }();
  uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc = crc >> 8 ^ table[(crc ^ static_cast<uint8_t>(byte)) & 0xff];
  }
  return ~crc;
}

}  // namespace lighthouse::run
