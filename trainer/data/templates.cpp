#include "data/templates.h"

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

std::vector<Span> render_alpaca(const json& record) {
  expect_object(record, "with \"instruction\", \"input\" and \"output\"");
  const std::string instruction = optional_string(record, "instruction"), input = optional_string(record, "input");
  if (instruction.empty() && input.empty())
    fail("\"instruction\" and \"input\" are both missing or empty: expected text");
  return {{alpaca_prompt(instruction, input), false}, {required_string(record, "output"), true}};
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

// A turn is "<|role|>\n", its content, and "\n"; an assistant's EOS stands before that last line break.
std::vector<Span> render_messages(const json& record) {
  expect_object(record, "with \"messages\"");
  const auto messages = record.find("messages");
  if (messages == record.end() || !messages->is_array() || messages->empty()) {
    fail("\"messages\": expected a list of messages that is not empty");
  }
  std::vector<Span> spans;
  std::string prompt;
  for (const json& message : *messages) {
    expect_object(message, "with \"role\" and \"content\" as a message");
    const std::string role = required_string(message, "role");
    if (role != "system" && role != "user" && role != "assistant") {
      fail("\"role\": expected system, user or assistant, got \"{}\"", role);
    }
    prompt += "<|" + role + "|>\n";
    if (role == "assistant") {
      spans.push_back({std::move(prompt), false});
      spans.push_back({message_content(message), true});
      prompt = "\n";
    } else {
      prompt += message_content(message) + "\n";
    }
  }
  return spans;  // what follows the last answer teaches nothing
}

std::vector<Span> render_text(const json& record) {
  if (record.is_string()) return {{record.get<std::string>(), true}};
  if (!record.is_object()) fail("expected a string or an object with \"text\", got {}", record.type_name());
  return {{required_string(record, "text"), true}};
}

}  // namespace

std::string alpaca_prompt(const std::string& instruction, const std::string& input) {
  if (instruction.empty()) return "### Input:\n" + input + "\n\n### Response:";
  if (input.empty()) {
    return "Below is an instruction that describes a task. Write a response that appropriately completes the request."
           "\n\n### Instruction:\n" +
           instruction + "\n\n### Response:";
  }
  return "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
         "response that appropriately completes the request.\n\n### Instruction:\n" +
         instruction + "\n\n### Input:\n" + input + "\n\n### Response:";
}

std::vector<Span> render(const std::string& format, const json& record) {
  if (format == "alpaca") return render_alpaca(record);
  if (format == "messages") return render_messages(record);
  return render_text(record);
}

}  // namespace uniattn
