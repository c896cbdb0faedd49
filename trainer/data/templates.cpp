#include "data/templates.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "data/whitespace.h"
#include "support/error.h"

namespace uniattn {
namespace {

using Kind = Piece::Kind;
using Messages = std::span<const Message>;

// Collects pieces; neighbouring texts with the same loss become one.
class Rendering {
 public:
  void text(std::string_view text) { add_text(text, false); }
  void special(const char* spelling) { pieces_.push_back({Kind::special, spelling}); }
  void bos() { pieces_.push_back({Kind::bos}); }
  // An assistant's turn and what ends it.
  void answer(std::string_view text, Piece end) {
    const bool supervised = !strip(text).empty();
    add_text(text, supervised);
    end.supervised = supervised;
    pieces_.push_back(std::move(end));
  }
  std::vector<Piece> take() { return std::move(pieces_); }

 private:
  void add_text(std::string_view text, bool supervised) {
    if (text.empty()) return;
    if (pieces_.empty() || pieces_.back().kind != Kind::text || pieces_.back().supervised != supervised) {
      pieces_.push_back({Kind::text, "", supervised});
    }
    pieces_.back().text += text;
  }
  std::vector<Piece> pieces_;
};

bool is_assistant(const Message& message) {
  return message.role == "assistant";
}

// The system message at the beginning is taken off; nullptr when there is none.
const Message* take_system(Messages& messages) {
  if (messages.empty() || messages[0].role != "system") return nullptr;
  const Message* system = &messages[0];
  messages = messages.subspan(1);
  return system;
}

// user, assistant, user, ...
void expect_turns(Messages messages, const char* name) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const char* expected = i % 2 == 0 ? "user" : "assistant";
    if (messages[i].role == expected) continue;
    fail("message {}: the template {} expects {} here (turns alternate, a system message comes first{}), got {}", i + 1,
         name, expected, name == std::string_view("gemma") ? " and is not supported" : "", messages[i].role);
  }
}

void render_alpaca(Messages messages, bool, Rendering& out) {
  const Message* system = take_system(messages);
  expect_turns(messages, "alpaca");
  out.text((system ? system->content : kAlpacaPreamble) + std::string("\n\n"));
  for (size_t i = 0; i < messages.size(); ++i) {
    if (is_assistant(messages[i])) {
      out.answer(messages[i].content, {Kind::eos});
    } else {
      out.text((i > 0 ? "\n\n### Instruction:\n" : "### Instruction:\n") + messages[i].content + "\n\n### Response:");
    }
  }
}

void render_tulu(Messages messages, bool generation_prompt, Rendering& out) {
  for (size_t i = 0; i < messages.size(); ++i) {
    out.text("<|" + messages[i].role + "|>\n");
    if (is_assistant(messages[i])) {
      out.answer(messages[i].content, {Kind::eos});
      if (i + 1 < messages.size()) out.text("\n");
    } else {
      out.text(messages[i].content + "\n");
    }
  }
  if (generation_prompt) out.text("<|assistant|>\n");
}

void render_llama2(Messages messages, bool, Rendering& out) {
  const Message* system = take_system(messages);
  expect_turns(messages, "llama2");
  for (size_t i = 0; i < messages.size(); ++i) {
    std::string content = messages[i].content;
    if (i == 0 && system) content = "<<SYS>>\n" + system->content + "\n<</SYS>>\n\n" + content;
    const std::string stripped(strip(content));
    if (is_assistant(messages[i])) {
      out.answer(" " + stripped + " ", {Kind::eos});
    } else {
      out.bos();  // before every round, as the model was trained
      out.text("[INST] " + stripped + " [/INST]");
    }
  }
}

void render_header_turn(const char* role, std::string_view content, Rendering& out) {
  out.special("<|start_header_id|>");
  out.text(role);
  out.special("<|end_header_id|>");
  if (role != std::string_view("assistant")) {
    out.text("\n\n" + std::string(strip(content)));
    return out.special("<|eot_id|>");
  }
  out.text("\n\n");
  out.answer(strip(content), {Kind::special, "<|eot_id|>"});
}

void render_llama3_turns(Messages messages, bool generation_prompt, Rendering& out) {
  for (const Message& message : messages) render_header_turn(message.role.c_str(), message.content, out);
  if (!generation_prompt) return;
  out.special("<|start_header_id|>");
  out.text("assistant");
  out.special("<|end_header_id|>");
  out.text("\n\n");
}

void render_llama3(Messages messages, bool generation_prompt, Rendering& out) {
  out.bos();
  render_llama3_turns(messages, generation_prompt, out);
}

// The published template states these two dates whenever its caller names no others.
void render_llama31(Messages messages, bool generation_prompt, Rendering& out) {
  const Message* system = take_system(messages);
  out.bos();
  out.special("<|start_header_id|>");
  out.text("system");
  out.special("<|end_header_id|>");
  out.text("\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
  if (system) out.text(strip(system->content));
  out.special("<|eot_id|>");
  render_llama3_turns(messages, generation_prompt, out);
}

void render_mistral(Messages messages, bool, Rendering& out) {
  const Message* system = take_system(messages);
  expect_turns(messages, "mistral");
  out.bos();
  for (size_t i = 0; i < messages.size(); ++i) {
    if (is_assistant(messages[i])) {
      out.answer(" " + messages[i].content, {Kind::eos});
    } else {
      out.text(" [INST] " + (i == 0 && system ? system->content + "\n\n" : "") + messages[i].content + " [/INST]");
    }
  }
}

// Where [INST] and [/INST] are tokens of their own. The system message stands in the user's last turn; the published
// template loses it when an answer follows.
void render_mistral_v03(Messages messages, bool, Rendering& out) {
  const Message* system = take_system(messages);
  expect_turns(messages, "mistral-v0.3");
  out.bos();
  const size_t last_user = messages.empty() ? 0 : (messages.size() - 1) / 2 * 2;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (is_assistant(messages[i])) {
      out.answer(" " + std::string(strip(messages[i].content)), {Kind::eos});
      continue;
    }
    out.special("[INST]");
    out.text(" " + (i == last_user && system ? system->content + "\n\n" : "") + messages[i].content);
    out.special("[/INST]");
  }
}

void render_gemma(Messages messages, bool generation_prompt, Rendering& out) {
  expect_turns(messages, "gemma");
  out.bos();
  for (const Message& message : messages) {
    out.special("<start_of_turn>");
    if (is_assistant(message)) {
      out.text("model\n");
      out.answer(strip(message.content), {Kind::special, "<end_of_turn>"});
    } else {
      out.text("user\n" + std::string(strip(message.content)));
      out.special("<end_of_turn>");
    }
    out.text("\n");
  }
  if (!generation_prompt) return;
  out.special("<start_of_turn>");
  out.text("model\n");
}

void render_chatml(Messages messages, bool generation_prompt, Rendering& out) {
  for (const Message& message : messages) {
    out.special("<|im_start|>");
    out.text(message.role + "\n");
    if (is_assistant(message)) {
      out.answer(message.content, {Kind::special, "<|im_end|>"});
    } else {
      out.text(message.content);
      out.special("<|im_end|>");
    }
    out.text("\n");
  }
  if (!generation_prompt) return;
  out.special("<|im_start|>");
  out.text("assistant\n");
}

void render_plain(Messages messages, bool, Rendering& out) {
  for (const Message& message : messages) {
    if (is_assistant(message)) {
      out.answer(message.content, {Kind::eos});
    } else {
      out.text(message.content);
    }
  }
}

struct Template {
  const char* name;
  void (*render)(Messages, bool generation_prompt, Rendering&);
  Piece end;
  std::vector<const char*> special;
};

const std::vector<Template>& templates() {
  const Piece eos{Kind::eos}, eot{Kind::special, "<|eot_id|>"};
  const std::vector<const char*> headers = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
  static const std::vector<Template> kTemplates = {
      {"alpaca", render_alpaca, eos, {}},
      {"tulu", render_tulu, eos, {}},
      {"llama2", render_llama2, eos, {}},
      {"llama3", render_llama3, eot, headers},
      {"llama3.1", render_llama31, eot, headers},
      {"mistral", render_mistral, eos, {}},
      {"mistral-v0.3", render_mistral_v03, eos, {"[INST]", "[/INST]"}},
      {"gemma", render_gemma, {Kind::special, "<end_of_turn>"}, {"<start_of_turn>", "<end_of_turn>"}},
      {"chatml", render_chatml, {Kind::special, "<|im_end|>"}, {"<|im_start|>", "<|im_end|>"}},
      {"plain", render_plain, eos, {}},
  };
  return kTemplates;
}

const Template& find_template(const std::string& name) {
  const auto found =
      std::ranges::find_if(templates(), [&](const Template& candidate) { return candidate.name == name; });
  if (found == templates().end())
    fail_usage("unknown template '{}': expected one of {}", name, fmt::join(template_names(), ", "));
  return *found;
}

}  // namespace

const std::vector<std::string>& template_names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const Template& known : templates()) names.emplace_back(known.name);
    return names;
  }();
  return kNames;
}

void check_role(const std::string& role) {
  if (role != "system" && role != "user" && role != "assistant")
    fail("\"role\": expected system, user or assistant, got \"{}\"", role);
}

std::vector<Piece> render_chat(const std::string& template_name, Messages messages, bool generation_prompt) {
  const Template& chosen = find_template(template_name);
  for (const Message& message : messages) check_role(message.role);
  Rendering rendering;
  chosen.render(messages, generation_prompt, rendering);
  return rendering.take();
}

Piece turn_end(const std::string& template_name) {
  return find_template(template_name).end;
}

int32_t piece_id(const Piece& piece, const Tokenizer& tokenizer) {
  if (piece.kind == Kind::bos) return tokenizer.bos_id();
  if (piece.kind == Kind::eos) {
    if (tokenizer.eos_id() < 0)
      fail("the tokenizer has no EOS token to end answers with: set eos_token_id in config.json");
    return tokenizer.eos_id();
  }
  const auto id = tokenizer.special_id(piece.text);
  if (!id) fail("the tokenizer has no special token {}: choose a template that fits the model", piece.text);
  return *id;
}

void check_template(const std::string& template_name, const Tokenizer& tokenizer) {
  const Template& chosen = find_template(template_name);
  for (const char* spelling : chosen.special) {
    if (!tokenizer.special_id(spelling))
      fail(
          "the template {} needs the special token {}, which the tokenizer does not have: choose one that fits the "
          "model",
          template_name, spelling);
  }
}

std::string alpaca_prompt(const std::string& instruction, const std::string& input) {
  if (instruction.empty()) return "### Input:\n" + input + "\n\n### Response:";
  if (input.empty()) return kAlpacaPreamble + ("\n\n### Instruction:\n" + instruction) + "\n\n### Response:";
  return "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
         "response that appropriately completes the request.\n\n### Instruction:\n" +
         instruction + "\n\n### Input:\n" + input + "\n\n### Response:";
}

}  // namespace uniattn
