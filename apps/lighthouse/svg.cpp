#include "apps/lighthouse/svg.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <sstream>

namespace lighthouse::app {
namespace {

constexpr double kWidth = 480, kHeight = 320;  // of a panel, within its axes
constexpr double kLeft = 80, kTop = 24, kBottom = 56, kGap = 24, kTitle = 32;
constexpr double kCellWidth = 72, kCellHeight = 32;

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
  void box(double x, double y, double width, double height, const std::string& color) {
    out_ << "<rect x=\"" << x << "\" y=\"" << y << "\" width=\"" << width << "\" height=\""
         << height << "\" fill=\"" << color << "\"/>\n";
  }
  void write(double x, double y, const std::string& text, const std::string& style) {
    out_ << "<text x=\"" << x << "\" y=\"" << y << "\" " << style << '>' << escaped(text)
         << "</text>\n";
  }
  void dot(double x, double y, const std::string& color) {
    out_ << "<circle cx=\"" << x << "\" cy=\"" << y << "\" r=\"3.5\" fill=\"" << color << "\"/>\n";
  }
  /// What is drawn until `end_within` is cut off at the box.
  void begin_within(double x, double y, double width, double height) {
    const std::string id = "box" + std::to_string(++boxes_);
    out_ << "<clipPath id=\"" << id << "\"><rect x=\"" << x << "\" y=\"" << y << "\" width=\""
         << width << "\" height=\"" << height << "\"/></clipPath>\n<g clip-path=\"url(#" << id
         << ")\">\n";
  }
  void end_within() { out_ << "</g>\n"; }
  void polyline(const std::vector<std::pair<double, double>>& points, const Curve& curve) {
    out_ << "<polyline fill=\"none\" stroke=\"" << curve.color << "\" stroke-width=\""
         << (curve.faint ? 1 : 2) << "\" opacity=\"" << (curve.faint ? 0.45 : 1) << "\" points=\"";
    for (const auto& [x, y] : points) out_ << x << ',' << y << ' ';
    out_ << "\"/>\n";
  }

 private:
  std::ostringstream out_;
  int boxes_ = 0;
};

std::string number(double value) {
  std::ostringstream out;
  out << (std::abs(value) < 1e-12 ? 0.0 : value);
  return out.str();
}

/// Upwards.
void write_sideways(Picture& picture, double x, double y, const std::string& text) {
  picture.write(
      x, y, text,
      "text-anchor=\"middle\" transform=\"rotate(-90 " + number(x) + ' ' + number(y) + ")\"");
}

void draw(Picture& picture, const Panel& panel, double left, double top) {
  Range x_range, y_range;
  for (const Curve& curve : panel.curves) {
    for (const auto& [x, y] : curve.points) {
      x_range.add(x);
      y_range.add(y);
    }
  }
  x_range.add(0);
  if (panel.from_zero) y_range.add(0);
  y_range.high = std::min(y_range.high, panel.highest);
  x_range = x_range.usable();
  y_range = y_range.usable();
  const double bottom = top + kHeight;
  const auto at_x = [&](double x) { return left + kWidth * x_range.share(x); };
  const auto at_y = [&](double y) { return bottom - kHeight * y_range.share(y); };
  write_sideways(picture, left - 60, top + kHeight / 2, panel.y_label);

  const std::string grid = "stroke=\"#dddddd\"";
  for (const double y : ticks(y_range)) {
    picture.line(left, at_y(y), left + kWidth, at_y(y), grid);
    picture.write(left - 6, at_y(y) + 4, number(y), "text-anchor=\"end\"");
  }
  for (const double x : ticks(x_range)) {
    picture.line(at_x(x), top, at_x(x), bottom, grid);
    picture.write(at_x(x), bottom + 16, number(x), "text-anchor=\"middle\"");
  }
  picture.write(left + kWidth / 2, bottom + 38, panel.x_label, "text-anchor=\"middle\"");
  for (const auto& [x, color] : panel.marks) {
    picture.line(at_x(x), top, at_x(x), bottom,
                 "stroke=\"" + color + "\" stroke-dasharray=\"4 3\"");
  }

  double legend = top + 18;
  for (const Curve& curve : panel.curves) {
    std::vector<std::pair<double, double>> points;
    for (const auto& [x, y] : curve.points) {
      if (std::isfinite(x) && std::isfinite(y)) points.emplace_back(at_x(x), at_y(y));
    }
    picture.begin_within(left - 4, top - 4, kWidth + 8, kHeight + 8);
    picture.polyline(points, curve);
    if (curve.marked) {
      for (const auto& [x, y] : points) picture.dot(x, y, curve.color);
    }
    picture.end_within();
    if (curve.name.empty()) continue;
    const double right = left + kWidth - 10;
    picture.write(right - 28, legend, curve.name, "text-anchor=\"end\"");
    picture.polyline({{right - 22, legend - 4}, {right, legend - 4}}, curve);
    if (curve.marked) picture.dot(right - 11, legend - 4, curve.color);
    legend += 17;
  }
}

/// From white to blue.
std::string color_of(double share) {
  std::array<char, 8> color{};
  const auto part = [&](double low) {
    return static_cast<unsigned>(std::lround(255 - (255 - low) * share));
  };
  std::snprintf(color.data(), color.size(), "#%02x%02x%02x", part(31), part(119), part(180));
  return color.data();
}

}  // namespace

std::string svg(const std::string& title, const std::vector<Panel>& panels, size_t columns) {
  Picture picture;
  const double across = kLeft + kWidth + kGap, down = kTop + kHeight + kBottom;
  const size_t rows = (panels.size() + columns - 1) / columns;
  picture.open(across * static_cast<double>(std::min(columns, panels.size())),
               kTitle + down * static_cast<double>(rows));
  picture.write(kLeft, 26, title, "font-size=\"15\"");
  for (size_t i = 0; i < panels.size(); ++i) {
    const size_t row = i / columns, column = i % columns;
    draw(picture, panels[i], kLeft + across * static_cast<double>(column),
         kTitle + kTop + down * static_cast<double>(row));
  }
  picture.close();
  return picture.text();
}

std::string svg(const std::string& title, const HeatMap& map) {
  Picture picture;
  const double width = kCellWidth * static_cast<double>(map.columns.size());
  const double height = kCellHeight * static_cast<double>(map.rows.size());
  const double top = kTitle + kTop, left = kLeft + kGap;
  picture.open(std::max(left + width + kGap, 480.0), top + height + kBottom);
  picture.write(16, 26, title, "font-size=\"15\"");
  for (size_t row = 0; row < map.rows.size(); ++row) {
    const double y = top + kCellHeight * static_cast<double>(row);
    picture.write(left - 8, y + kCellHeight / 2 + 4, map.rows[row], "text-anchor=\"end\"");
    for (size_t column = 0; column < map.columns.size(); ++column) {
      const double x = left + kCellWidth * static_cast<double>(column);
      const double share = map.shares[row][column];
      picture.box(x, y, kCellWidth - 2, kCellHeight - 2, color_of(share));
      picture.write(
          x + kCellWidth / 2, y + kCellHeight / 2 + 4, number(std::round(100 * share)),
          share > 0.5 ? "text-anchor=\"middle\" fill=\"white\"" : "text-anchor=\"middle\"");
    }
  }
  for (size_t column = 0; column < map.columns.size(); ++column) {
    picture.write(left + kCellWidth * (static_cast<double>(column) + 0.5), top + height + 18,
                  map.columns[column], "text-anchor=\"middle\"");
  }
  picture.write(left + width / 2, top + height + 40, map.x_label, "text-anchor=\"middle\"");
  write_sideways(picture, 24, top + height / 2, map.y_label);
  picture.close();
  return picture.text();
}

}  // namespace lighthouse::app
