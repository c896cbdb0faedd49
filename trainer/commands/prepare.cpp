#include <unistd.h>

#include <algorithm>

#include "commands/commands.h"
#include "commands/dry_run.h"
#include "commands/options.h"
#include "commands/pipeline.h"
#include "data/manifest.h"
#include "data/show.h"

namespace uniattn {
namespace {

using nlohmann::ordered_json;

ordered_json counts_json(const PrepareCounts& c) {
  return {{"read", c.read},
          {"kept", c.kept},
          {"truncated", c.truncated},
          {"split", c.split},
          {"dropped_bad", c.dropped_bad},
          {"dropped_filtered", c.dropped_filtered},
          {"dropped_over_long", c.dropped_over_long},
          {"dropped_without_labels", c.dropped_without_labels},
          {"tokens", c.tokens},
          {"supervised", c.supervised}};
}

double packing_efficiency(const PrepareCounts& counts, int64_t max_length) {
  return static_cast<double>(counts.tokens) / static_cast<double>(counts.rows * max_length);
}

ordered_json set_json(const TokenShards& shards, int64_t max_length) {
  ordered_json result = counts_json(shards.counts());
  result["packing_efficiency"] = packing_efficiency(shards.counts(), max_length);
  for (const SourceEntry& source : shards.sources()) {
    ordered_json& entry =
        result["sources"].emplace_back(ordered_json{{"path", source.path}, {"weight", source.weight}});
    entry.update(counts_json(source.counts));
    if (!source.first_bad.empty()) entry["first_bad"] = source.first_bad;
  }
  return result;
}

std::string counts_line(const std::string& name, const PrepareCounts& c) {
  return fmt::format("{:<40} {:>9} {:>9} {:>9} {:>7} {:>8} {:>9} {:>9} {:>10} {:>12} {:>12}\n", name, c.read, c.kept,
                     c.truncated, c.split, c.dropped_bad, c.dropped_filtered, c.dropped_over_long,
                     c.dropped_without_labels, c.tokens, c.supervised);
}

// The end of a path that is too long for its column.
std::string shortened(const std::string& path) {
  constexpr size_t kWidth = 40;
  return path.size() <= kWidth ? path : "..." + path.substr(path.size() - kWidth + 3);
}

std::string set_text(const char* name, const TokenShards& shards, int64_t max_length) {
  std::string text = fmt::format("\n{:<40} {:>9} {:>9} {:>9} {:>7} {:>8} {:>9} {:>9} {:>10} {:>12} {:>12}\n", name,
                                 "read", "kept", "truncated", "split", "dropped:", "", "", "nothing", "", "");
  text += fmt::format("{:<40} {:>9} {:>9} {:>9} {:>7} {:>8} {:>9} {:>9} {:>10} {:>12} {:>12}\n", "", "", "", "", "",
                      "bad", "filtered", "over-long", "to learn", "tokens", "supervised");
  for (const SourceEntry& source : shards.sources()) text += counts_line(shortened(source.path), source.counts);
  if (shards.sources().size() > 1) text += counts_line("all", shards.counts());
  text += fmt::format("packed into {} rows of {} tokens, {:.2f} % full\n", shards.counts().rows, max_length,
                      100 * packing_efficiency(shards.counts(), max_length));
  return text;
}

// The first `show` documents of each file.
std::string samples_text(const TokenShards& shards, const Tokenizer& tokenizer, int64_t show) {
  const bool colour = isatty(STDOUT_FILENO) != 0;
  std::string text;
  std::vector<int64_t> shown(shards.sources().size());
  for (int64_t i = 0; i < shards.size(); ++i) {
    const auto source = static_cast<size_t>(shards.source(i));
    if (shown[source]++ >= show) continue;
    const Document document = shards.document(i);
    text += fmt::format("\n--- {}, document {}: {} tokens, {} supervised\n{}\n", shards.sources()[source].path, i + 1,
                        document.tokens.size(), std::ranges::count(document.supervised, 1),
                        render_sample(document, tokenizer, colour));
  }
  return text;
}

void run_prepare(const RunOptions& options, int64_t show) {
  if (options.dry_run) return dry_run(open_session(options.path, options.overrides), options);
  const Session session = open_session(options.path, options.overrides);
  const RunDirectory run = create_run_directory(session.config, options.accept_changes);
  const PreparedData data = prepare_data(session, run);
  const int64_t max_length = session.config.data.max_length;
  std::string text = fmt::format("prepared data: {}\n", run.data());
  ordered_json result = ordered_json::object();
  const auto report = [&](const char* name, const std::optional<TokenShards>& shards) {
    if (!shards) return;
    result[name] = set_json(*shards, max_length);
    text += set_text(name, *shards, max_length);
    if (show > 0) text += samples_text(*shards, *session.tokenizer, show);
  };
  report("calibration", data.calibration);
  report("train", data.train);
  report("eval", data.eval);
  print_result(options.json, result, text);
}

}  // namespace

void add_prepare(CLI::App& program) {
  auto options = std::make_shared<RunOptions>();
  auto show = std::make_shared<int64_t>(0);
  CLI::App* command = program.add_subcommand("prepare", "Text to token shards, every record accounted for");
  options->add_to(*command);
  command->add_option("--show", *show, "Print the first N documents of each file, supervised tokens marked")
      ->check(CLI::NonNegativeNumber);
  command->footer("Example: uniattn prepare configs/quickstart.yaml run.dir=runs/mine --show 2");
  command->callback([options, show] { run_prepare(*options, *show); });
}

}  // namespace uniattn
