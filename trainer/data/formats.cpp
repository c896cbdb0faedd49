#include "data/formats.h"

#include <algorithm>

#include "data/whitespace.h"
#include "support/error.h"

namespace uniattn {
namespace {

using nlohmann::json;

[[noreturn]] void fail_field(const char* name, const char* expected, const json& found) {
  fail("\"{}\": expected {}, got {}", name, expected, found.type_name());
}

// An absent field and null are the same: some data sets write one, some the other.
std::string optional_string(const json& record, const char* name) {
  const auto found = record.find(name);
  if (found == record.end() || found->is_null()) return "";
  if (!found->is_string()) fail_field(name, "a string", *found);
  return found->get<std::string>();
}

std::string required_string(const json& record, const char* name) {
  if (!record.contains(name)) fail("\"{}\" is missing: expected a string", name);
  if (!record[name].is_string()) fail_field(name, "a string", record[name]);
  return record[name].get<std::string>();
}

void expect_object(const json& value, const char* what) {
  if (!value.is_object()) fail("expected an object {}, got {}", what, value.type_name());
}

// One round made of an instruction and an input, of which one may be empty. Alpaca has a prompt for the two; other
// templates get them as one message.
std::vector<Piece> render_instruction(const std::string& template_name, const std::string& instruction,
                                      const std::string& input, const std::string& output) {
  if (template_name != "alpaca") {
    const std::string between = instruction.empty() || input.empty() ? "" : "\n\n";
    const Message round[] = {{"user", instruction + between + input}, {"assistant", output}};
    return render_chat(template_name, round);
  }
  const bool supervised = !strip(output).empty();
  std::vector<Piece> pieces = {{Piece::Kind::text, alpaca_prompt(instruction, input)}};
  if (!output.empty()) pieces.push_back({Piece::Kind::text, output, supervised});
  pieces.push_back({Piece::Kind::eos, "", supervised});
  return pieces;
}

std::vector<Piece> render_alpaca_record(const std::string& template_name, const json& record) {
  expect_object(record, "with \"instruction\", \"input\" and \"output\"");
  const std::string instruction = optional_string(record, "instruction"), input = optional_string(record, "input");
  if (instruction.empty() && input.empty())
    fail("\"instruction\" and \"input\" are both missing or empty: expected text");
  return render_instruction(template_name, instruction, input, required_string(record, "output"));
}

std::string message_content(const json& message) {
  const auto content = message.find("content");
  if (content == message.end()) fail("\"content\" is missing: expected a string or a list of text parts");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) fail_field("content", "a string or a list of text parts", *content);
  std::string text;
  for (const json& part : *content) {
    expect_object(part, "with \"type\" and \"text\" as part of the content");
    if (const std::string type = required_string(part, "type"); type != "text") {
      fail("\"type\" of a content part: expected \"text\", got \"{}\"", type);
    }
    text += required_string(part, part.contains("value") ? "value" : "text");
  }
  return text;
}

std::vector<Message> read_messages(const json& record) {
  expect_object(record, "with \"messages\"");
  const auto found = record.find("messages");
  if (found == record.end() || !found->is_array() || found->empty()) {
    fail("\"messages\": expected a list of messages that is not empty");
  }
  std::vector<Message> messages;
  for (const json& message : *found) {
    expect_object(message, "with \"role\" and \"content\" as a message");
    messages.push_back({required_string(message, "role"), message_content(message)});
    check_role(messages.back().role);
  }
  return messages;
}

std::vector<Piece> render_conversation(const std::string& template_name, const json& record) {
  std::vector<Message> messages = read_messages(record);
  while (!messages.empty() && messages.back().role != "assistant") messages.pop_back();
  return render_chat(template_name, messages);
}

// UniAttn's choice of Tulu-3: one question that is not empty and its answer.
std::optional<std::vector<Piece>> render_single_round(const std::string& template_name, const json& record) {
  const std::vector<Message> messages = read_messages(record);
  const bool single = messages.size() == 2 && messages[0].role == "user" && messages[1].role == "assistant";
  if (!single || strip(messages[0].content).empty()) return std::nullopt;
  return render_instruction(template_name, "", messages[0].content, messages[1].content);
}

std::vector<Piece> render_text(const json& record) {
  const auto text = [&] {
    if (record.is_string()) return record.get<std::string>();
    if (!record.is_object()) fail("expected a string or an object with \"text\", got {}", record.type_name());
    return required_string(record, "text");
  };
  const Message whole[] = {{"assistant", text()}};
  return render_chat("plain", whole);
}

}  // namespace

std::string default_template(const std::string& format) {
  if (format == "messages") return "tulu";
  if (format == "text") return "plain";
  return format == "ids" ? "" : "alpaca";
}

std::optional<std::vector<Piece>> render_record(const std::string& format, const std::string& template_name,
                                                const json& record) {
  if (format == "alpaca") return render_alpaca_record(template_name, record);
  if (format == "messages") return render_conversation(template_name, record);
  if (format == "tulu_single_round") return render_single_round(template_name, record);
  return render_text(record);
}

}  // namespace uniattn
