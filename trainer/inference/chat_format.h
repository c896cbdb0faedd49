// Conversations as prompts.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "data/templates.h"

namespace uniattn {

class ChatFormat {
 public:
  // `name` empty: the template that the directory brings; where it brings none, alpaca, on which this program trains by
  // default. Throws UsageError for an unknown name, Error for a template that needs special tokens which the tokenizer
  // does not have. The tokenizer must outlive this.
  ChatFormat(const std::string& name, const std::string& model_directory, const Tokenizer& tokenizer);

  const std::string& name() const { return name_; }
  // The ids of the conversation with what opens the assistant's turn. Throws Error for one that the template cannot
  // express.
  std::vector<int64_t> prompt(std::span<const Message> messages) const;
  // `end_tokens` and what ends an assistant's turn.
  std::vector<int64_t> stop_ids(std::vector<int64_t> end_tokens) const;

 private:
  std::string name_;
  const Tokenizer& tokenizer_;
};

}  // namespace uniattn
