#include "checkpoint/export.h"
#include "checkpoint/published.h"
#include "commands/commands.h"
#include "commands/options.h"
#include "support/error.h"

namespace uniattn {
namespace {

struct ConvertArguments {
  std::string model, out, dtype;
  double max_shard_gb = 5;
  PublishedPlan published;
  bool json = false;
};

void run_convert(const ConvertArguments& arguments) {
  PublishedCheckpoint model;
  if (arguments.published.group > 0) {
    model = open_published(arguments.model, arguments.published);
  } else {
    model = {.directory = open_model_directory(arguments.model), .tensors = open_model_tensors(arguments.model)};
  }
  const ModelDirectory& directory = model.directory;
  check_tensors(*model.tensors, directory.config, directory.plan, /*allow_missing_compensation=*/false);
  const std::string& dtype = arguments.dtype.empty() ? directory.config.dtype : arguments.dtype;
  export_model(directory, directory.plan, *model.tensors, arguments.out,
               {.dtype = parse_dtype(dtype), .max_shard_bytes = static_cast<size_t>(arguments.max_shard_gb * 1e9)});
  const size_t followers = directory.plan.followers().size();
  print_result(arguments.json, {{"export", arguments.out}, {"dtype", dtype}, {"followers", followers}},
               fmt::format("{}: {}, {} followers", arguments.out, dtype, followers));
}

}  // namespace

void add_convert(CLI::App& program) {
  auto arguments = std::make_shared<ConvertArguments>();
  CLI::App* command = program.add_subcommand(
      "convert", "A model directory in another precision or shard size; checkpoints of the published UniAttn code");
  command->add_option("--model", arguments->model, "Hugging Face directory, plain or exported by uniattn")->required();
  command->add_option("--out", arguments->out, "Directory to write")->required();
  command->add_option("--dtype", arguments->dtype, "float32, bfloat16 or float16 (default: the checkpoint's)");
  command->add_option("--max-shard-gb", arguments->max_shard_gb, "Largest weight file, in units of 10^9 bytes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  auto* group = command->add_option("--group", arguments->published.group,
                                    "The model was saved by the published UniAttn code: its grouping_idx");
  auto* begin = command->add_option("--begin", arguments->published.begin, "and its grouping_begin_idx");
  auto* end = command->add_option("--end", arguments->published.end, "and its grouping_end_idx");
  group->needs(begin)->needs(end)->check(CLI::PositiveNumber);
  begin->needs(group);
  end->needs(group);
  command->add_flag("--json", arguments->json, "Print the result as one JSON object");
  command->footer(
      "Examples: uniattn convert --model models/llama-3.1-8b --out models/llama-3.1-8b-f16 --dtype float16\n"
      "          uniattn convert --model published/llama-pmc --group 4 --begin 16 --end 33 --out models/llama-pmc");
  command->callback([arguments] { run_convert(*arguments); });
}

}  // namespace uniattn
