#include "apps/lighthouse/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>

namespace lighthouse::app {
namespace {

constexpr double kWidth = 480, kHeight = 320;  // of a panel, within its axes
constexpr double kLeft = 64, kTop = 48, kBottom = 56, kGap = 40;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  /// A range that can be divided by its width.
  Range usable() const {
    if (low > high) return {0, 1};
    return low == high ? Range{low - 0.5, high + 0.5} : *this;
  }
  double share(double value) const { return (value - low) / (high - low); }
};

/// About five values in the range, a step of 1, 2 or 5 times a power of ten apart.
std::vector<double> ticks(const Range& range) {
  const double rough = (range.high - range.low) / 5;
  double step = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {2.0, 2.5, 2.0}) {
    if (step < rough) step *= factor;
  }
  std::vector<double> values;
  const auto last = static_cast<int64_t>(std::floor(range.high / step));
  for (auto i = static_cast<int64_t>(std::ceil(range.low / step)); i <= last; ++i) {
    values.push_back(static_cast<double>(i) * step);
  }
  return values;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

class Picture {
 public:
  std::string text() const { return out_.str(); }

  void open(double width, double height) {
    out_ << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " << width << ' ' << height
         << "\" width=\"" << width << "\" height=\"" << height
         << "\" font-family=\"sans-serif\" font-size=\"12\">\n"
         << "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  }
  void close() { out_ << "</svg>\n"; }

  void line(double x1, double y1, double x2, double y2, const std::string& style) {
    out_ << "<line x1=\"" << x1 << "\" y1=\"" << y1 << "\" x2=\"" << x2 << "\" y2=\"" << y2 << "\" "
         << style << "/>\n";
  }
  void write(double x, double y, const std::string& text, const std::string& style) {
    out_ << "<text x=\"" << x << "\" y=\"" << y << "\" " << style << '>' << escaped(text)
         << "</text>\n";
  }
  void dot(double x, double y, const std::string& color) {
    out_ << "<circle cx=\"" << x << "\" cy=\"" << y << "\" r=\"3.5\" fill=\"" << color << "\"/>\n";
  }
  void polyline(const std::vector<std::pair<double, double>>& points, const Curve& curve) {
    out_ << "<polyline fill=\"none\" stroke=\"" << curve.color << "\" stroke-width=\""
         << (curve.faint ? 1 : 2) << "\" opacity=\"" << (curve.faint ? 0.45 : 1) << "\" points=\"";
    for (const auto& [x, y] : points) out_ << x << ',' << y << ' ';
    out_ << "\"/>\n";
  }

 private:
  std::ostringstream out_;
};

std::string number(double value) {
  std::ostringstream out;
  out << (std::abs(value) < 1e-12 ? 0.0 : value);
  return out.str();
}

void draw(Picture& picture, const Panel& panel, double left, const Range& y_range) {
  Range x_range;
  for (const Curve& curve : panel.curves) {
    for (const auto& [x, y] : curve.points) x_range.add(x);
  }
  x_range.add(0);
  x_range = x_range.usable();
  const auto at_x = [&](double x) { return left + kWidth * x_range.share(x); };
  const auto at_y = [&](double y) { return kTop + kHeight * (1 - y_range.share(y)); };

  const std::string grid = "stroke=\"#dddddd\"";
  for (const double y : ticks(y_range)) {
    picture.line(left, at_y(y), left + kWidth, at_y(y), grid);
    picture.write(left - 6, at_y(y) + 4, number(y), "text-anchor=\"end\"");
  }
  for (const double x : ticks(x_range)) {
    picture.line(at_x(x), kTop, at_x(x), kTop + kHeight, grid);
    picture.write(at_x(x), kTop + kHeight + 16, number(x), "text-anchor=\"middle\"");
  }
  picture.write(left + kWidth / 2, kTop + kHeight + 38, panel.x_label, "text-anchor=\"middle\"");
  for (const auto& [x, color] : panel.marks) {
    picture.line(at_x(x), kTop, at_x(x), kTop + kHeight,
                 "stroke=\"" + color + "\" stroke-dasharray=\"4 3\"");
  }

  double legend = kTop + 18;
  for (const Curve& curve : panel.curves) {
    std::vector<std::pair<double, double>> points;
    for (const auto& [x, y] : curve.points) {
      if (std::isfinite(x) && std::isfinite(y)) points.emplace_back(at_x(x), at_y(y));
    }
    picture.polyline(points, curve);
    if (curve.marked) {
      for (const auto& [x, y] : points) picture.dot(x, y, curve.color);
    }
    if (curve.name.empty()) continue;
    const double right = left + kWidth - 10;
    picture.write(right - 28, legend, curve.name, "text-anchor=\"end\"");
    picture.polyline({{right - 22, legend - 4}, {right, legend - 4}}, curve);
    if (curve.marked) picture.dot(right - 11, legend - 4, curve.color);
    legend += 17;
  }
}

}  // namespace

std::string svg(const std::string& title, const std::string& y_label,
                const std::vector<Panel>& panels) {
  Range y_range;
  for (const Panel& panel : panels) {
    for (const Curve& curve : panel.curves) {
      for (const auto& [x, y] : curve.points) y_range.add(y);
    }
  }
  y_range = y_range.usable();

  Picture picture;
  const double step = kLeft + kWidth + kGap;
  const double middle = kTop + kHeight / 2;
  picture.open(step * static_cast<double>(panels.size()), kTop + kHeight + kBottom);
  picture.write(kLeft, 26, title, "font-size=\"15\"");
  picture.write(16, middle, y_label,
                "text-anchor=\"middle\" transform=\"rotate(-90 16 " + number(middle) + ")\"");
  for (size_t i = 0; i < panels.size(); ++i) {
    draw(picture, panels[i], kLeft + step * static_cast<double>(i), y_range);
  }
  picture.close();
  return picture.text();
}

}  // namespace lighthouse::app
