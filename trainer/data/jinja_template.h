// Chat templates in Jinja, for model directories: `transformers` and others read chat_template.jinja.
#pragma once
#include <string>

namespace uniattn {

// What render_chat (data/templates.h) does, as Jinja under transformers' variables (messages, bos_token, eos_token,
// add_generation_prompt). It writes BOS itself, since text out of a chat template is tokenized without special tokens
// added. Throws UsageError for an unknown template.
const std::string& jinja_template(const std::string& template_name);

}  // namespace uniattn
