#include <fmt/ranges.h>

#include <fstream>
#include <iostream>

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

void run_tokenize(const TokenizeArguments& arguments) {
  const auto tokenizer = load_tokenizer(arguments.model);
  if (arguments.bos && tokenizer->bos_id() < 0)
    fail_usage("--bos: the tokenizer of `{}` has no BOS token", arguments.model);
  std::ifstream in(arguments.text, std::ios::binary);
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    const std::string where = fmt::format("{}:{}", arguments.text, number);
    if (arguments.jsonl) {
      const nlohmann::json value = parse_json(line, where);
      if (!value.is_string()) fail("{}: expected a JSON string, found {}", where, value.type_name());
      line = value.get<std::string>();
    }
    std::vector<int32_t> ids;
    try {
      ids = tokenizer->encode(line);
    } catch (const Error& error) {
      fail("{}: {}", where, error.what());
    }
    if (arguments.bos) ids.insert(ids.begin(), tokenizer->bos_id());
    std::cout << fmt::format("{}\n", fmt::join(ids, " "));
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
