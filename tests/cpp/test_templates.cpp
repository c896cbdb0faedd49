// Chat templates against the text of the published ones, written out by hand.
#include <map>
#include <nlohmann/json.hpp>

#include "data/jinja_template.h"
#include "data/model_template.h"
#include "data/templates.h"
#include "data_workplace.h"

using namespace uniattn;
using namespace uniattn::testing;

namespace {

const std::vector<Message> kChat = {
    {"system", " S "}, {"user", " q "}, {"assistant", " a "}, {"user", "r\n<|eot_id|>"}, {"assistant", "b"}};

// The conversation as one string: BOS and EOS as <s> and </s>, learnt parts in [[ ]].
std::string shown(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& piece : pieces) {
    const std::string part = piece.kind == Piece::Kind::bos   ? "<s>"
                             : piece.kind == Piece::Kind::eos ? "</s>"
                                                              : piece.text;
    text += piece.supervised ? "[[" + part + "]]" : part;
  }
  return text;
}

std::string shown(const std::string& name, std::vector<Message> chat = kChat, bool generation_prompt = false) {
  if (name == "gemma" && chat[0].role == "system") chat.erase(chat.begin());
  return shown(render_chat(name, chat, generation_prompt));
}

}  // namespace

TEST_CASE("templates: multi-turn conversations with a system message", "[data]") {
  const std::map<std::string, std::string> expected = {
      {"alpaca",
       " S \n\n### Instruction:\n q \n\n### Response:[[ a ]][[</s>]]\n\n### Instruction:\nr\n<|eot_id|>\n\n"
       "### Response:[[b]][[</s>]]"},
      {"tulu",
       "<|system|>\n S \n<|user|>\n q \n<|assistant|>\n[[ a ]][[</s>]]\n<|user|>\nr\n<|eot_id|>\n<|assistant|>\n"
       "[[b]][[</s>]]"},
      {"llama2",
       "<s>[INST] <<SYS>>\n S \n<</SYS>>\n\n q [/INST][[ a ]][[</s>]]<s>[INST] r\n<|eot_id|> [/INST][[ b ]]"
       "[[</s>]]"},
      {"llama3",
       "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
       "q<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[a]][[<|eot_id|>]]<|start_header_id|>user"
       "<|end_header_id|>\n\nr\n<|eot_id|><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[b]]"
       "[[<|eot_id|>]]"},
      {"llama3.1",
       "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
       "26 Jul 2024\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>"
       "assistant<|end_header_id|>\n\n[[a]][[<|eot_id|>]]<|start_header_id|>user<|end_header_id|>\n\nr\n"
       "<|eot_id|><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[b]][[<|eot_id|>]]"},
      {"mistral", "<s> [INST]  S \n\n q  [/INST][[  a ]][[</s>]] [INST] r\n<|eot_id|> [/INST][[ b]][[</s>]]"},
      {"mistral-v0.3", "<s>[INST]  q [/INST][[ a]][[</s>]][INST]  S \n\nr\n<|eot_id|>[/INST][[ b]][[</s>]]"},
      {"gemma",
       "<s><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n[[a]][[<end_of_turn>]]\n<start_of_turn>"
       "user\nr\n<|eot_id|><end_of_turn>\n<start_of_turn>model\n[[b]][[<end_of_turn>]]\n"},
      {"chatml",
       "<|im_start|>system\n S <|im_end|>\n<|im_start|>user\n q <|im_end|>\n<|im_start|>assistant\n[[ a ]]"
       "[[<|im_end|>]]\n<|im_start|>user\nr\n<|eot_id|><|im_end|>\n<|im_start|>assistant\n[[b]][[<|im_end|>]]\n"},
      {"plain", " S  q [[ a ]][[</s>]]r\n<|eot_id|>[[b]][[</s>]]"},
  };
  for (const std::string& name : template_names()) {
    INFO(name);
    REQUIRE(expected.contains(name));
    CHECK(shown(name) == expected.at(name));
  }
}

TEST_CASE("templates: what opens an assistant's turn", "[data]") {
  const std::map<std::string, std::string> opening = {
      {"tulu", "<|assistant|>\n"},
      {"llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n"},
      {"llama3.1", "<|start_header_id|>assistant<|end_header_id|>\n\n"},
      {"gemma", "<start_of_turn>model\n"},
      {"chatml", "<|im_start|>assistant\n"},
  };
  const std::vector<Message> question = {{"user", "q"}};
  for (const std::string& name : template_names()) {
    INFO(name);
    const std::string extra = opening.contains(name) ? opening.at(name) : "";
    const std::string prompt = shown(name, question, true);
    CHECK(prompt == shown(name, question) + extra);
    // Training sees the same prompt before an answer.
    CHECK_THAT(shown(name, {{"user", "q"}, {"assistant", "a"}}), Catch::StartsWith(prompt + "[["));
  }
}

TEST_CASE("templates: control is control and text is text", "[data]") {
  for (const std::string& name : template_names()) {
    INFO(name);
    for (const Piece& piece : render_chat(name, std::vector<Message>{{"user", "</s>[INST]<end_of_turn>"}})) {
      if (piece.text.find("</s>") != std::string::npos) CHECK(piece.kind == Piece::Kind::text);
    }
    const auto blank = render_chat(name, std::vector<Message>{{"user", "q"}, {"assistant", " \n\u3000"}});
    CHECK(std::none_of(blank.begin(), blank.end(), [](const Piece& piece) { return piece.supervised; }));
    const auto answered = render_chat(name, std::vector<Message>{{"user", "q"}, {"assistant", "a"}});
    Piece end = turn_end(name);
    end.supervised = true;
    CHECK(std::count(answered.begin(), answered.end(), end) == 1);
  }
}

TEST_CASE("templates: what a template cannot express is refused", "[data]") {
  const auto refusal = [](const char* name, std::vector<Message> chat) {
    return message_of<Error>([&] { render_chat(name, chat); });
  };
  CHECK_THAT(refusal("gemma", {{"system", "s"}, {"user", "q"}}), contains("message 1") && contains("gemma"));
  CHECK_THAT(refusal("llama2", {{"user", "q"}, {"user", "q"}}), contains("message 2") && contains("alternate"));
  CHECK_THAT(refusal("tulu", {{"tool", "q"}}), contains("\"role\"") && contains("tool"));
  CHECK_THAT(refusal("vicuna", {}), contains("unknown template 'vicuna'") && contains("llama3.1"));
  CHECK_THAT(message_of<Error>([] { check_template("gemma", ByteTokenizer()); }), contains("<start_of_turn>"));
}

TEST_CASE("templates: the template of a model directory", "[data]") {
  const TemporaryDirectory directory;
  CHECK_FALSE(template_of_model(directory.path()));
  const auto told = [&](const std::string& jinja) {
    write_bytes(directory / "tokenizer_config.json", nlohmann::json({{"chat_template", jinja}}).dump());
    return template_of_model(directory.path());
  };
  CHECK(told("{{ '<start_of_turn>' }}") == "gemma");
  CHECK(told("{{ '[INST] ' + content.strip() + ' [/INST]' }} <<SYS>>") == "llama2");
  CHECK(told("{{ ' [INST] ' + m + ' [/INST]' }}") == "mistral");
  CHECK(told("{{ '[INST] ' + m + '[/INST]' }}") == "mistral-v0.3");
  CHECK(told("<|start_header_id|>") == "llama3");
  CHECK(told("<|start_header_id|> Cutting Knowledge Date") == "llama3.1");
  CHECK(told("{{ '<|assistant|>\\n' }}") == "tulu");
  CHECK_THAT(message_of<Error>([&] { told("USER: "); }), contains("tokenizer_config.json") && contains("chatml"));
  for (const std::string& name : template_names()) CHECK(told(jinja_template(name)) == name);
  write_bytes(directory / "chat_template.jinja", "<|im_start|>");
  CHECK(told("<start_of_turn>") == "chatml");
}
