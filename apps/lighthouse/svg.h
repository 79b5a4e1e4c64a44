#pragma once

#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace lighthouse::app {

/// A curve of a chart.
struct Curve {
  std::string name;  ///< for the legend; an empty one is not in it
  std::string color;
  std::vector<std::pair<double, double>> points;
  bool marked = false;  ///< a dot at every point
  bool faint = false;
};

/// A chart.
struct Panel {
  std::string x_label, y_label;
  std::vector<Curve> curves;
  std::vector<std::pair<double, std::string>> marks;         ///< vertical lines: x and color
  bool from_zero = false;                                    ///< the vertical axis
  double highest = std::numeric_limits<double>::infinity();  ///< where it ends at the latest
};

/// An SVG picture of the panels, so many to a row. Points that are not finite are left out.
std::string svg(const std::string& title, const std::vector<Panel>& panels, size_t columns = 2);

/// A table whose cells are colored by their shares, from 0 to 1.
struct HeatMap {
  std::string x_label, y_label;
  std::vector<std::string> columns, rows;
  std::vector<std::vector<double>> shares;  ///< by row
};

std::string svg(const std::string& title, const HeatMap& map);

}  // namespace lighthouse::app
