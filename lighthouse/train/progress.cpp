#include "lighthouse/train/progress.h"

#include <algorithm>
#include <iomanip>
#include <ostream>
#include <sstream>
#include <utility>

namespace lighthouse::train {
namespace {

constexpr double kPlainLines = 20;

/// "1:02:03", or "2:03" below an hour.
std::string clock(double seconds) {
  const auto total = static_cast<int64_t>(seconds);
  std::ostringstream out;
  if (total >= 3600) out << total / 3600 << ':' << std::setfill('0') << std::setw(2);
  out << total / 60 % 60 << ':' << std::setfill('0') << std::setw(2) << total % 60;
  return out.str();
}

}  // namespace

Progress::Progress(std::ostream& out, bool terminal, const std::vector<run::StageRecipe>& stages)
    : out_(out),
      terminal_(terminal),
      stages_(stages),
      by_seconds_(!stages.empty() && stages.front().by_seconds()) {
  for (const run::StageRecipe& stage : stages) all_ += stage.length();
}

Progress::~Progress() {
  if (drawn_) out_ << '\n' << std::flush;
}

/// Steps or seconds.
double Progress::done(const run::StepMetrics& m) const {
  return by_seconds_ ? m.seconds : static_cast<double>(m.step);
}

/// "lighthouse 1:02, dense ?"
std::string Progress::left(const run::StepMetrics& m) const {
  std::string text;
  double end = 0;
  for (const run::StageRecipe& stage : stages_) {
    end += stage.length();
    const double rest = std::max(0.0, std::min(stage.length(), end - done(m)));
    if (rest == 0 && &stage != &stages_.back()) continue;
    const double step = static_cast<double>(stage.tokens_per_step()) * pace_;
    const bool known = by_seconds_ || stage.name == m.stage;
    text += (text.empty() ? "" : ", ") + stage.name + ' ' +
            (known ? clock(by_seconds_ ? rest : rest * step) : "?");
  }
  return text;
}

void Progress::step(const run::StepMetrics& m, bool edge_of_stage) {
  const double pace = 1 / m.tokens_per_second;
  pace_ = m.stage != stage_ ? pace : 0.9 * pace_ + 0.1 * pace;
  stage_ = m.stage;
  const auto line_due = static_cast<int64_t>(kPlainLines * done(m) / all_);
  const bool due = line_due != std::exchange(line_, line_due);
  if (!terminal_ && !due && !edge_of_stage) return;
  std::ostringstream line;
  line << std::fixed << std::setprecision(0) << "step " << m.step;
  if (by_seconds_) line << ", second " << m.seconds;
  line << '/' << all_ << "  " << m.stage << " (" << m.attention << ")  loss "
       << std::setprecision(4) << m.loss << "  " << std::setprecision(0) << 1 / pace_
       << " tokens/s  " << std::setprecision(1) << static_cast<double>(m.memory_bytes) / (1 << 30)
       << " GiB  left: " << left(m);
  if (terminal_) {
    draw(line.str());
  } else {
    out_ << line.str() << std::endl;
  }
}

void Progress::prepare(const std::string& what, uint64_t done, uint64_t all,
                       const std::string& unit) {
  std::ostringstream line;
  line << what << ": " << std::fixed << std::setprecision(1) << static_cast<double>(done) / 1e9
       << " of " << static_cast<double>(all) / 1e9 << ' ' << unit;
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
