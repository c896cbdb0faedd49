#include "data/jinja_template.h"

#include <map>

#include "data/templates.h"

namespace uniattn {
namespace {

// What follows a system message; `given`: there is one.
constexpr const char* kTurns =
    R"({%- set given = messages[0].role == 'system' -%}{%- set turns = messages[1:] if given else messages -%})";

constexpr const char* kAlpaca =  // `preamble` is set
    R"({{ bos_token }}{{ (messages[0].content if given else preamble) + '\n\n' }}{% for m in turns %})"
    R"({% if m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}{{ ('' if loop.first else '\n\n') + )"
    R"('### Instruction:\n' + m.content + '\n\n### Response:' }}{% endif %}{% endfor %})";

constexpr const char* kTulu =
    R"({{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + )"
    R"((eos_token if m.role == 'assistant' else '') + ('' if m.role == 'assistant' and loop.last else '\n') }})"
    R"({% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %})";

constexpr const char* kLlama2 =
    R"({% for m in turns %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% else %})"
    R"({{ bos_token }}{{ '[INST] ' + (('<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' if given and loop.first )"
    R"(else '') + m.content) | trim + ' [/INST]' }}{% endif %}{% endfor %})";

constexpr const char* kHeaderTurns =
    R"({% for m in turns %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + )"
    R"('<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %})"
    R"({{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %})";

constexpr const char* kLlama31System =
    R"({{ bos_token }}{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n)"
    R"(Today Date: 26 Jul 2024\n\n' + (messages[0].content | trim if given else '') + '<|eot_id|>' }})";

constexpr const char* kMistral =
    R"({{ bos_token }}{% for m in turns %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %})"
    R"({{ ' [INST] ' + (messages[0].content + '\n\n' if given and loop.first else '') + m.content + ' [/INST]' }})"
    R"({% endif %}{% endfor %})";

constexpr const char* kMistralV03 =
    R"({{ bos_token }}{% for m in turns %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }})"
    R"({% else %}{{ '[INST] ' + (messages[0].content + '\n\n' if given and )"
    R"(loop.index0 == (turns | length - 1) // 2 * 2 else '') + m.content + '[/INST]' }}{% endif %}{% endfor %})";

constexpr const char* kGemma =
    R"({%- if messages[0].role == 'system' -%}{{ raise_exception('this template takes no system message') }})"
    R"({%- endif -%}{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + )"
    R"(('model' if m.role == 'assistant' else 'user') + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %})"
    R"({% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %})";

constexpr const char* kChatMl =
    R"({{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }})"
    R"({% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})";

constexpr const char* kPlain =
    R"({{ bos_token }}{% for m in messages %}{{ m.content + (eos_token if m.role == 'assistant' else '') }}{% endfor %})";

}  // namespace

const std::string& jinja_template(const std::string& template_name) {
  static const std::string turns = kTurns;
  static const std::map<std::string, std::string> kTexts = {
      {"alpaca", turns + "{%- set preamble = '" + kAlpacaPreamble + "' -%}" + kAlpaca},
      {"tulu", kTulu},
      {"llama2", turns + kLlama2},
      {"llama3", R"({%- set turns = messages -%}{{ bos_token }})" + std::string(kHeaderTurns)},
      {"llama3.1", turns + kLlama31System + kHeaderTurns},
      {"mistral", turns + kMistral},
      {"mistral-v0.3", turns + kMistralV03},
      {"gemma", kGemma},
      {"chatml", kChatMl},
      {"plain", kPlain},
  };
  turn_end(template_name);  // refuses an unknown name
  return kTexts.at(template_name);
}

}  // namespace uniattn
