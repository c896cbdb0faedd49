// Chat templates: what a conversation looks like to a model. Used by `prepare` and by everything that talks to a model.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace uniattn {

struct Message {
  std::string role;  // system | user | assistant
  std::string content;
};

// Throws Error for a role that no template knows.
void check_role(const std::string& role);

// A part of a rendered conversation. Only `special`, `bos` and `eos` pieces are control: a special token's spelling
// inside a text is data.
struct Piece {
  enum class Kind { text, special, bos, eos };
  Kind kind = Kind::text;
  std::string text{};       // of a text; of a special token its spelling
  bool supervised = false;  // whether it carries loss
  bool operator==(const Piece&) const = default;
};

// What Alpaca's prompt begins with where there is no system message.
inline constexpr const char* kAlpacaPreamble =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";

// alpaca, tulu, llama2, llama3, llama3.1, mistral, mistral-v0.3, gemma, chatml, plain (docs/data.md).
const std::vector<std::string>& template_names();

// The conversation as the model's own chat template renders it, every assistant turn supervised, its terminator
// included; a turn of nothing but white space is not supervised. `generation_prompt`: with what opens an assistant's
// turn at the end. Without a bos piece the tokenizer's BOS, if it has one, belongs in front (tokenize_pieces puts it
// there). Throws UsageError for an unknown template, Error for a conversation that the template cannot express: roles
// that do not alternate, a system message where it knows none, an unknown role.
std::vector<Piece> render_chat(const std::string& template_name, std::span<const Message> messages,
                               bool generation_prompt = false);

// What ends an assistant's turn: generation stops there. Throws UsageError for an unknown template.
Piece turn_end(const std::string& template_name);

// The id of a piece that is not text; -1 for a bos that the tokenizer does not have. Throws Error for an eos or special
// token that it does not have.
int32_t piece_id(const Piece& piece, const Tokenizer& tokenizer);

// Throws Error naming the first special token of the template that the tokenizer does not have; UsageError for an
// unknown template.
void check_template(const std::string& template_name, const Tokenizer& tokenizer);

// The prompt of Alpaca, made of an instruction and an input, one of which may be empty.
std::string alpaca_prompt(const std::string& instruction, const std::string& input);

}  // namespace uniattn
