#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "commands/commands.h"
#include "commands/options.h"
#include "commands/pipeline.h"
#include "commands/scratch.h"
#include "data/templates.h"
#include "parallel/device.h"
#include "parallel/launch.h"
#include "storage/hash.h"
#include "support/error.h"
#include "support/log.h"
#include "train/evaluate_layerwise.h"

namespace uniattn {
namespace {

constexpr int64_t kDefaultWindow = 2048;
constexpr std::chrono::seconds kTimeout(600);

struct EvalArguments {
  std::string model, text, ids, data, format, template_name, dtype, logits;
  int64_t window = 0;
  bool layerwise = false, json = false;
};

// `tokens` cut into windows, a loss on all but the first token of each.
void cut_windows(const std::vector<int32_t>& tokens, int64_t window, const std::vector<uint8_t>& supervised,
                 std::vector<Document>& documents) {
  for (size_t begin = 0; begin < tokens.size(); begin += window) {
    const size_t count = std::min<size_t>(window, tokens.size() - begin);
    documents.push_back({{tokens.data() + begin, count}, {supervised.data(), count}});
  }
}

// A whole text as one sequence, BOS first where the tokenizer has one.
std::vector<int32_t> encode_file(const std::string& path, const Tokenizer& tokenizer) {
  std::ifstream in(path, std::ios::binary);
  if (!in) fail("cannot read `{}`", path);
  std::stringstream text;
  text << in.rdbuf();
  std::vector<int32_t> tokens = tokenizer.encode(text.str());
  if (tokenizer.bos_id() >= 0) tokens.insert(tokens.begin(), tokenizer.bos_id());
  return tokens;
}

// Logits of every position of every window, in order: [positions, vocab] float32.
void write_logits(const Decoder& model, const std::vector<Document>& documents, const std::string& path) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for (const Document& document : documents) {
    at::Tensor logits = uniattn::linear(model.hidden(make_batch({document})), model.head).to(at::kFloat);
    if (const double cap = model.config.final_softcap; cap > 0) logits = (logits / cap).tanh() * cap;
    parts.push_back(std::move(logits));
  }
  write_safetensors(path, {{"logits", at::cat(parts)}});
}

at::ScalarType dtype_of(const EvalArguments& arguments, const ModelDirectory& directory) {
  return parse_dtype(arguments.dtype.empty() ? directory.config.dtype : arguments.dtype);
}

Evaluation evaluate_whole(const EvalArguments& arguments, const ModelDirectory& directory,
                          const std::vector<Document>& documents, ProcessGroup& group) {
  const Decoder model = load_decoder(directory, dtype_of(arguments, directory), compute_device(group.local_rank()));
  const Evaluation result = evaluate(model, documents, group);
  if (!arguments.logits.empty()) write_logits(model, documents, arguments.logits);
  return result;
}

Evaluation evaluate_by_layer(const EvalArguments& arguments, const ModelDirectory& directory,
                             const std::vector<Document>& documents, ProcessGroup& group) {
  const auto tensors = open_model_tensors(directory.path);
  check_tensors(*tensors, directory.config, directory.plan, /*allow_missing_compensation=*/false);
  return evaluate_layerwise(directory.config, *tensors, directory.plan, dtype_of(arguments, directory), documents,
                            compute_device(group.local_rank()), group);
}

// That all ranks were given the same.
void require_equal_inputs(const ModelDirectory& directory, const std::vector<Document>& documents,
                          ProcessGroup& group) {
  Hasher hasher;
  for (const Document& document : documents) {
    hasher.update({reinterpret_cast<const char*>(document.tokens.data()), document.tokens.size_bytes()});
    hasher.update({reinterpret_cast<const char*>(document.supervised.data()), document.supervised.size_bytes()});
  }
  group.require_equal("model's config.json", directory.json.dump());
  group.require_equal("evaluation data", hasher.hex());
}

void run_eval(const EvalArguments& arguments) {
  const Launch launch = Launch::from_environment();
  if (launch.rank > 0) log::only_warnings();
  if (launch.world_size > 1 && !arguments.logits.empty())
    fail_usage("--logits is written by one process, and there are {}: start it without torchrun", launch.world_size);
  const ModelDirectory directory = open_model_directory(arguments.model);
  const int64_t window =
      arguments.window > 0 ? arguments.window : std::min(directory.config.max_positions, kDefaultWindow);
  const auto tokenizer = tokenizer_or_ids_only(directory);
  std::vector<int32_t> text_tokens;
  std::vector<uint8_t> supervised(window, 1);
  supervised[0] = 0;
  std::optional<ScratchDirectory> scratch;
  std::optional<TokenShards> shards;
  std::vector<Document> documents;
  if (!arguments.text.empty()) {
    text_tokens = encode_file(arguments.text, *tokenizer);
    cut_windows(text_tokens, window, supervised, documents);
  } else {
    const bool ids = !arguments.ids.empty();
    const DataSource source{.path = ids ? arguments.ids : arguments.data,
                            .format = ids ? "ids" : arguments.format,
                            .template_name = arguments.template_name};
    const PrepareOptions options{.max_length = window, .over_long = ids ? "split" : "truncate", .bad_records = "error"};
    scratch.emplace();
    shards.emplace(prepare_tokens({source}, *tokenizer, directory.path, options, scratch->path()));
    documents = shards->documents();
  }
  ProcessGroup group(kTimeout);
  require_equal_inputs(directory, documents, group);
  const Evaluation result = arguments.layerwise ? evaluate_by_layer(arguments, directory, documents, group)
                                                : evaluate_whole(arguments, directory, documents, group);
  if (group.rank() > 0) return;
  print_result(arguments.json, {{"loss", result.loss}, {"perplexity", result.perplexity()}, {"tokens", result.tokens}},
               fmt::format("loss {:.6f} nats per token\nperplexity {:.4f}\npredicted tokens {}", result.loss,
                           result.perplexity(), result.tokens));
}

}  // namespace

void add_eval(CLI::App& program) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = program.add_subcommand("eval", "Loss and perplexity of a model directory");
  command->add_option("--model", arguments->model, "Hugging Face directory, plain or exported by uniattn")->required();
  auto* what = command->add_option_group("what", "What to evaluate on, one of");
  what->add_option("--text", arguments->text, "Text file: one sequence, BOS first, cut into windows")
      ->check(CLI::ExistingFile);
  what->add_option("--ids", arguments->ids, "Token ids, one document per line, as they stand, cut into windows")
      ->check(CLI::ExistingFile);
  auto* data = what->add_option("--data", arguments->data,
                                "Data set in the format that --format names; loss on supervised tokens")
                   ->check(CLI::ExistingFile);
  what->require_option(1);
  command->add_option("--format", arguments->format, "Format of --data")
      ->check(CLI::IsMember({"alpaca", "messages", "tulu_single_round", "text"}))
      ->needs(data);
  command->add_option("--template", arguments->template_name, "Chat template of --data (default: the format's own)")
      ->check(CLI::IsMember(template_names()))
      ->needs(data);
  command->add_option("--window", arguments->window, "Tokens per window (default: the model's positions, at most 2048)")
      ->check(CLI::Range(2, 1 << 24));
  command->add_option("--dtype", arguments->dtype, "float32, bfloat16 or float16 (default: the checkpoint's)");
  auto* logits = command->add_option(
      "--logits", arguments->logits,
      "Also write the logits of all positions, float32 [positions, vocab], to this .safetensors file");
  command
      ->add_flag("--layerwise", arguments->layerwise,
                 "Keep one layer's weights in memory at a time: for models that do not fit, at the cost of reading the "
                 "weights anew for every 65536 tokens")
      ->excludes(logits);
  command->add_flag("--json", arguments->json, "Print the result as one JSON object");
  command->footer("Example: uniattn eval --model runs/pmc-uniattn/export --data held_out.json --format alpaca");
  command->callback([arguments] {
    if (!arguments->data.empty() && arguments->format.empty())
      fail_usage("--data needs --format alpaca, messages, tulu_single_round or text");
    run_eval(*arguments);
  });
}

}  // namespace uniattn
