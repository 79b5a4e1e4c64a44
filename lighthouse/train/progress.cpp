#include "lighthouse/train/progress.h"

#include <algorithm>
#include <iomanip>
#include <ostream>
#include <sstream>

namespace lighthouse::train {
namespace {

constexpr int64_t kPlainLines = 20;

/// "1:02:03", or "2:03" below an hour.
std::string clock(double seconds) {
  const auto total = static_cast<int64_t>(seconds);
  std::ostringstream out;
  if (total >= 3600) out << total / 3600 << ':' << std::setfill('0') << std::setw(2);
  out << total / 60 % 60 << ':' << std::setfill('0') << std::setw(2) << total % 60;
  return out.str();
}

}  // namespace

Progress::Progress(std::ostream& out, bool terminal, const std::vector<StageRecipe>& stages)
    : out_(out), terminal_(terminal), stages_(stages) {
  for (const StageRecipe& stage : stages) steps_ += stage.steps;
}

Progress::~Progress() {
  if (drawn_) out_ << '\n' << std::flush;
}

/// "lighthouse 1:02, dense ?"
std::string Progress::left(const StepMetrics& m) const {
  std::string text;
  int64_t end = 0;
  for (const StageRecipe& stage : stages_) {
    end += stage.steps;
    if (end < m.step || (end == m.step && &stage != &stages_.back())) continue;
    const bool begun = stage.name == m.stage;
    const auto tokens = static_cast<double>((end - m.step) * stage.tokens_per_step());
    text += (text.empty() ? "" : ", ") + stage.name + ' ' + (begun ? clock(tokens * pace_) : "?");
  }
  return text;
}

void Progress::step(const StepMetrics& m, bool edge_of_stage) {
  const double pace = 1 / m.tokens_per_second;
  pace_ = m.stage != stage_ ? pace : 0.9 * pace_ + 0.1 * pace;
  stage_ = m.stage;
  const bool due = m.step % std::max<int64_t>(1, steps_ / kPlainLines) == 0;
  if (!terminal_ && !due && !edge_of_stage) return;
  std::ostringstream line;
  line << std::fixed << "step " << m.step << '/' << steps_ << "  " << m.stage << " (" << m.attention
       << ")  loss " << std::setprecision(4) << m.loss << "  " << std::setprecision(0) << 1 / pace_
       << " tokens/s  " << std::setprecision(1) << static_cast<double>(m.memory_bytes) / (1 << 30)
       << " GiB  left: " << left(m);
  if (terminal_) {
    draw(line.str());
  } else {
    out_ << line.str() << std::endl;
  }
}

void Progress::prepare(const std::string& what, uint64_t done, uint64_t all) {
  std::ostringstream line;
  line << what << ": " << std::fixed << std::setprecision(1) << static_cast<double>(done) / 1e9
       << " of " << static_cast<double>(all) / 1e9 << " GB";
  if (terminal_) return draw(line.str());
  const std::string tenths = what + std::to_string(10 * done / std::max<uint64_t>(1, all));
  if (tenths != prepared_) say(line.str());
  prepared_ = tenths;
}

void Progress::draw(const std::string& line) {
  // Without wrapping: what a narrow terminal has no room for is left out.
  out_ << "\r\033[K\033[?7l" << line << "\033[?7h" << std::flush;
  drawn_ = true;
}

void Progress::say(const std::string& line) {
  if (drawn_) out_ << "\r\033[K";
  drawn_ = false;
  out_ << line << std::endl;
}

}  // namespace lighthouse::train
