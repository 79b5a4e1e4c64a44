#pragma once

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

/// A panel with its own horizontal axis; panels of a picture share the vertical one.
struct Panel {
  std::string x_label;
  std::vector<Curve> curves;
  std::vector<std::pair<double, std::string>> marks;  ///< vertical lines: x and color
};

/// An SVG picture of the panels side by side. Points that are not finite are left out.
std::string svg(const std::string& title, const std::string& y_label,
                const std::vector<Panel>& panels);

}  // namespace lighthouse::app
