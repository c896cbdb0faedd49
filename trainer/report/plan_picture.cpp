#include "report/plan_picture.h"

#include <fmt/format.h>

#include <algorithm>

namespace uniattn {
namespace {

constexpr int64_t kPerRow = 40;
constexpr double kBox = 22, kGap = 4, kArc = 26;

std::string describe(const LayerPlan& layer, int64_t index) {
  std::string text = fmt::format("layer {}: {}", index, to_string(layer.mode));
  if (layer.leader >= 0) text += fmt::format(", leader {}", layer.leader);
  if (layer.num_kv_heads > 0) text += fmt::format(", {} key/value heads", layer.num_kv_heads);
  if (layer.compensation.kind == Compensation::Kind::full) text += ", full compensation";
  if (layer.compensation.kind == Compensation::Kind::low_rank)
    text += fmt::format(", compensation of rank {}", layer.compensation.rank);
  if (!layer.head_map.empty()) text += ", head map";
  return text;
}

}  // namespace

std::string plan_picture(const SharingPlan& plan) {
  const auto layers = static_cast<int64_t>(plan.layers.size());
  const int64_t rows = (layers + kPerRow - 1) / kPerRow, columns = std::min(layers, kPerRow);
  const double row_height = kArc + kBox + 16;
  const auto x_of = [](int64_t i) { return static_cast<double>(i % kPerRow) * (kBox + kGap) + kGap; };
  const auto y_of = [&](int64_t i) { return static_cast<double>(i / kPerRow) * row_height + kArc; };
  const double width = static_cast<double>(columns) * (kBox + kGap) + kGap;
  std::string out =
      fmt::format(R"(<svg class="plan" style="max-width:{:.0f}px" viewBox="0 0 {:.0f} {:.0f}" role="img">)",
                  1.4 * width, width, static_cast<double>(rows) * row_height);
  for (int64_t i = 0; i < layers; ++i) {
    const LayerPlan& layer = plan.layers[i];
    if (layer.leader >= 0 && layer.leader / kPerRow == i / kPerRow) {
      const double from = x_of(i) + kBox / 2, to = x_of(layer.leader) + kBox / 2, y = y_of(i);
      const double height = std::min(kArc - 2, 5 + (from - to) / 6);
      out += fmt::format(R"(<path class="arc" d="M{:.1f} {:.1f}Q{:.1f} {:.1f} {:.1f} {:.1f}"/>)", from, y,
                         (from + to) / 2, y - 2 * height, to, y);
    }
    out +=
        fmt::format(R"(<g><title>{}</title><rect class="mode-{}" x="{:.1f}" y="{:.1f}" width="{}" height="{}" rx="3"/>)"
                    R"(<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text></g>)",
                    describe(layer, i), to_string(layer.mode), x_of(i), y_of(i), kBox, kBox, x_of(i) + kBox / 2,
                    y_of(i) + kBox / 2 + 4, i);
  }
  return out + "</svg>";
}

}  // namespace uniattn
