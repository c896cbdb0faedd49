// Line charts as inline SVG.
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace uniattn {

struct Curve {
  std::string name;
  int run = 0;                                      // chooses the colour
  bool dashed = false;                              // a second kind of curve of the same run
  std::vector<std::pair<double, double>> points{};  // x ascending; y that is not finite leaves a gap
};

struct Chart {
  std::string title, x_label, y_label;
  bool from_zero = false;  // the y axis begins at 0
  bool whole_x = false;    // x counts: no ticks between whole numbers
  std::vector<Curve> curves{};
};

// An <svg> of fixed proportions that fills the width it is given; empty when no curve has a point. Colours and fonts
// come from the page's style sheet: classes `run-0` to `run-7`, then again.
std::string to_svg(const Chart& chart);

// Means over equal stretches of x: at most `count` points that look like the many. For noisy curves of long runs.
std::vector<std::pair<double, double>> thin_out(const std::vector<std::pair<double, double>>& points, size_t count);

// "&", "<", ">" and quotes as entities.
std::string escape_html(const std::string& text);

// 12_345_678 as 12.3 M, 0.000123 as 0.000123; three digits.
std::string short_number(double value);

}  // namespace uniattn
