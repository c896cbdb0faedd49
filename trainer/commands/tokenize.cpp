#include <ATen/Parallel.h>

#include <fstream>
#include <iostream>
#include <optional>

#include "commands/commands.h"
#include "storage/json.h"
#include "support/error.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {
namespace {

struct TokenizeArguments {
  std::string model, text;
  bool jsonl = false, bos = false;
};

constexpr size_t kLineBytes = 8 << 20;  // of lines, tokenized between two rounds of writing

struct Line {
  std::string text;
  std::string ids;
  std::optional<std::string> error;
};

// Lines from `in`, at least one and as many as fit into a batch; none at the end.
std::vector<Line> read_batch(std::istream& in) {
  std::vector<Line> batch;
  std::string text;
  for (size_t bytes = 0; bytes < kLineBytes && std::getline(in, text); bytes += text.size() + 1) {
    batch.push_back({text, "", std::nullopt});
  }
  return batch;
}

std::string tokenize_line(const std::string& line, const Tokenizer& tokenizer, const TokenizeArguments& arguments) {
  const nlohmann::json parsed = arguments.jsonl ? parse_json(line, "the line") : nlohmann::json(nullptr);
  if (arguments.jsonl && !parsed.is_string()) fail("expected a JSON string, found {}", parsed.type_name());
  std::vector<int32_t> ids = tokenizer.encode(arguments.jsonl ? parsed.get_ref<const std::string&>() : line);
  if (arguments.bos) ids.insert(ids.begin(), tokenizer.bos_id());
  std::string text;
  for (const int32_t id : ids) {
    if (!text.empty()) text += ' ';
    const fmt::format_int digits(id);
    text.append(digits.data(), digits.size());
  }
  return text += '\n';
}

void run_tokenize(const TokenizeArguments& arguments) {
  const auto tokenizer = load_tokenizer(arguments.model);
  if (arguments.bos && tokenizer->bos_id() < 0)
    fail_usage("--bos: the tokenizer of `{}` has no BOS token", arguments.model);
  std::ifstream in(arguments.text, std::ios::binary);
  int64_t number = 0;
  for (std::vector<Line> batch; !(batch = read_batch(in)).empty();) {
    at::parallel_for(0, static_cast<int64_t>(batch.size()), 16, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        Line& line = batch[static_cast<size_t>(i)];
        try {
          line.ids = tokenize_line(line.text, *tokenizer, arguments);
        } catch (const Error& error) {
          line.error = error.what();
        }
      }
    });
    for (const Line& line : batch) {
      ++number;
      if (line.error) fail("{}:{}: {}", arguments.text, number, *line.error);
      std::cout << line.ids;
    }
  }
}

}  // namespace

void add_tokenize(CLI::App& program) {
  auto arguments = std::make_shared<TokenizeArguments>();
  CLI::App* command = program.add_subcommand("tokenize", "Token ids of a text, one line per input line");
  command->add_option("--model", arguments->model, "Hugging Face directory")->required();
  command->add_option("--text", arguments->text, "Text file")->required()->check(CLI::ExistingFile);
  command->add_flag("--jsonl", arguments->jsonl, "Each line is a JSON string");
  command->add_flag("--bos", arguments->bos, "Put BOS before each line's ids");
  command->footer("Example: uniattn tokenize --model models/llama-2-7b --text notes.txt --bos");
  command->callback([arguments] { run_tokenize(*arguments); });
}

}  // namespace uniattn
