// tokenizer.json's patterns are written for Oniguruma, tiktoken's for Rust's regex; they are matched by PCRE2.
#pragma once
#include <string>

namespace uniattn {

// The same pattern for PCRE2 in UTF and UCP mode: \s is Unicode's White_Space, \p{L} and \p{N} are those of Unicode 16.
// Throws Error, with the byte of the pattern, for what PCRE2 reads differently and published tokenizers do not use.
std::string for_pcre2(const std::string& pattern);

}  // namespace uniattn
