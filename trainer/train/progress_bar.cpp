#include "train/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

#include "support/log.h"

namespace uniattn {
namespace {

constexpr auto kLineEvery = std::chrono::seconds(10);
constexpr int kBarWidth = 20;

std::string duration(double seconds) {
  const auto total = static_cast<int64_t>(seconds + 0.5);
  return total >= 3600 ? fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60)
                       : fmt::format("{}:{:02}", total / 60, total % 60);
}

// An exponential average that starts at the first value.
void smooth(double& average, double value) {
  average = average == 0 ? value : 0.9 * average + 0.1 * value;
}

// A longer line would wrap, and the next one not overwrite it.
size_t terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

void ProgressBar::show(const StepMetrics& m) {
  smooth(tokens_per_second_, static_cast<double>(m.tokens) / m.seconds);
  smooth(seconds_per_step_, m.seconds);
  const double supervised =
      tokens_per_second_ * static_cast<double>(m.supervised_tokens) / static_cast<double>(m.tokens);
  const std::string left = duration(static_cast<double>(m.at.stage_steps - m.at.step) * seconds_per_step_);
  const std::string distill = m.distill_loss ? fmt::format("  distill {:.4g}", *m.distill_loss) : "";
  const std::string text = fmt::format(
      "{} {}/{}  loss {:.4f}{}  {} left  lr {:.2e}  |g| {:.3f}  {:.0f} tokens/s, {:.0f} supervised  MFU {:.0f} %  "
      "{:.1f} "
      "GB",
      m.at.stage, m.at.step, m.at.stage_steps, m.loss, distill, left, m.learning_rate, m.gradient_norm,
      tokens_per_second_, supervised, 100 * m.mfu, static_cast<double>(m.peak_memory_bytes) / 1e9);
  if (isatty(STDERR_FILENO)) {
    const auto filled = static_cast<int>(kBarWidth * m.at.step / m.at.stage_steps);
    const std::string bar = fmt::format("[{:=<{}}{: <{}}] {}", "", filled, "", kBarWidth - filled, text);
    fmt::print(stderr, "\r\033[K{}", bar.substr(0, terminal_columns() - 1));
    std::fflush(stderr);
    open_ = true;
  }
  const auto now = Clock::now();
  if (m.at.step != 1 && m.at.step != m.at.stage_steps && now - last_line_ < kLineEvery) return;
  last_line_ = now;
  open_ ? log::file_only(text) : log::info(text);
}

void ProgressBar::finish() {
  if (open_) std::fputc('\n', stderr);
  open_ = false;
}

}  // namespace uniattn
