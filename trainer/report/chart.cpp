#include "report/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace uniattn {
namespace {

constexpr double kWidth = 560, kHeight = 300, kLeft = 58, kRight = 14, kTop = 34, kBottom = 42;

struct Range {
  double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
  void include(double value) { low = std::min(low, value), high = std::max(high, value); }
  bool empty() const { return low > high; }
};

// Distance between ticks: 1, 2 or 5 times a power of ten, about `count` of them.
double tick_distance(const Range& range, int count) {
  const double rough = (range.high - range.low) / count, power = std::pow(10, std::floor(std::log10(rough)));
  for (const double step : {1.0, 2.0, 5.0})
    if (rough <= step * power) return step * power;
  return 10 * power;
}

// Data to picture.
struct Frame {
  Range x, y;
  double at_x(double value) const { return kLeft + (value - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight); }
  double at_y(double value) const {
    return kHeight - kBottom - (value - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom);
  }
};

Frame frame_of(const Chart& chart) {
  Frame frame;
  for (const Curve& curve : chart.curves)
    for (const auto& [x, y] : curve.points)
      if (std::isfinite(y)) frame.x.include(x), frame.y.include(y);
  if (frame.x.empty()) return frame;
  if (chart.from_zero) frame.y.include(0);
  for (Range* range : {&frame.x, &frame.y}) {
    if (range->low < range->high) continue;
    const double around = range->low == 0 ? 1 : std::abs(range->low) / 2;
    range->low -= around, range->high += around;
  }
  const double margin = 0.05 * (frame.y.high - frame.y.low);
  frame.y.high += margin;
  if (!chart.from_zero) frame.y.low -= margin;
  return frame;
}

std::string grid(const Frame& frame, bool whole_x) {
  std::string out;
  const double dx = std::max(tick_distance(frame.x, 6), whole_x ? 1.0 : 0.0), dy = tick_distance(frame.y, 5);
  for (double y = std::ceil(frame.y.low / dy) * dy; y <= frame.y.high; y += dy)
    out += fmt::format(
        R"(<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/><text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>)",
        kLeft, kWidth - kRight, frame.at_y(y), frame.at_y(y), kLeft - 6, frame.at_y(y) + 4,
        short_number(std::abs(y) < dy / 2 ? 0 : y));
  for (double x = std::ceil(frame.x.low / dx) * dx; x <= frame.x.high; x += dx)
    out += fmt::format(R"(<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>)", frame.at_x(x),
                       kHeight - kBottom + 16, short_number(std::abs(x) < dx / 2 ? 0 : x));
  return out;
}

std::string path_of(const Curve& curve, const Frame& frame) {
  std::string path;
  bool pen_down = false;
  for (const auto& [x, y] : curve.points) {
    if (std::isfinite(y)) path += fmt::format("{}{:.1f} {:.1f}", pen_down ? "L" : "M", frame.at_x(x), frame.at_y(y));
    pen_down = std::isfinite(y);
  }
  return path;
}

std::string draw(const Curve& curve, const Frame& frame) {
  const std::string classes = fmt::format("curve run-{}{}", curve.run % 8, curve.dashed ? " dashed" : "");
  std::string out = fmt::format(R"(<g><title>{}</title><path class="{}" d="{}"/>)", escape_html(curve.name), classes,
                                path_of(curve, frame));
  // Few points are measurements to be read one by one.
  if (curve.points.size() <= 40)
    for (const auto& [x, y] : curve.points)
      if (std::isfinite(y))
        out += fmt::format(
            R"(<circle class="dot run-{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}: {} at {}</title></circle>)",
            curve.run % 8, frame.at_x(x), frame.at_y(y), escape_html(curve.name), short_number(y), short_number(x));
  return out + "</g>";
}

}  // namespace

std::string to_svg(const Chart& chart) {
  const Frame frame = frame_of(chart);
  if (frame.x.empty()) return "";
  std::string out =
      fmt::format(R"(<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><text class="title" x="{}" y="20">{}</text>)",
                  kWidth, kHeight, escape_html(chart.title), kLeft, escape_html(chart.title));
  out += fmt::format(R"(<text class="label" x="{}" y="20" text-anchor="end">{}</text>)", kWidth - kRight,
                     escape_html(chart.y_label));
  out += grid(frame, chart.whole_x);
  for (const Curve& curve : chart.curves)
    if (!curve.points.empty()) out += draw(curve, frame);
  out += fmt::format(R"(<text class="label" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text></svg>)",
                     (kLeft + kWidth - kRight) / 2, kHeight - 6, escape_html(chart.x_label));
  return out;
}

std::vector<std::pair<double, double>> thin_out(const std::vector<std::pair<double, double>>& points, size_t count) {
  if (points.size() <= count) return points;
  std::vector<std::pair<double, double>> means;
  for (size_t i = 0; i < count; ++i) {
    const size_t begin = points.size() * i / count, end = points.size() * (i + 1) / count;
    double x = 0, y = 0;
    for (size_t p = begin; p < end; ++p) x += points[p].first, y += points[p].second;
    means.emplace_back(x / static_cast<double>(end - begin), y / static_cast<double>(end - begin));
  }
  return means;
}

std::string escape_html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
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

std::string short_number(double value) {
  if (!std::isfinite(value)) return "–";
  for (const auto& [unit, name] : {std::pair{1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e4, " k"}}) {
    const double scale = name[1] == 'k' ? 1e3 : unit;
    if (std::abs(value) >= unit) return fmt::format("{:.3g}{}", value / scale, name);
  }
  return fmt::format("{:.4g}", value);
}

}  // namespace uniattn
