#include "inference/chat_format.h"

#include <algorithm>

#include "data/model_template.h"
#include "data/tokenize.h"

namespace uniattn {

ChatFormat::ChatFormat(const std::string& name, const std::string& model_directory, const Tokenizer& tokenizer)
    : name_(name.empty() ? template_of_model(model_directory).value_or("alpaca") : name), tokenizer_(tokenizer) {
  check_template(name_, tokenizer);
}

std::vector<int64_t> ChatFormat::prompt(std::span<const Message> messages) const {
  const TokenizedDocument document = tokenize_pieces(render_chat(name_, messages, true), tokenizer_);
  return {document.tokens.begin(), document.tokens.end()};
}

std::vector<int64_t> ChatFormat::stop_ids(std::vector<int64_t> end_tokens) const {
  const Piece end = turn_end(name_);
  if (end.kind == Piece::Kind::text) return end_tokens;
  const int64_t id = piece_id(end, tokenizer_);
  if (std::find(end_tokens.begin(), end_tokens.end(), id) == end_tokens.end()) end_tokens.push_back(id);
  return end_tokens;
}

}  // namespace uniattn
