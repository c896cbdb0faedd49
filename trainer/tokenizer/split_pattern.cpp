#include "tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cctype>

#include "support/error.h"

namespace uniattn {
namespace {

// PCRE2's \s also takes U+180E, which left White_Space in Unicode 6.3.
constexpr std::string_view kSpaces =
    R"(\t-\r\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr size_t npos = std::string_view::npos;
constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
constexpr size_t kJitStackBytes[] = {32 << 10, 8 << 20};  // at the start, at most

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

// tokenizer.json's patterns are written for Oniguruma and tiktoken's for Rust. PCRE2 reads what published tokenizers
// use in the same way, apart from \s; what it would read differently is refused.
std::string for_pcre2(const std::string& pattern) {
  const auto refuse = [&](size_t at, const char* what) {
    fail("the pattern '{}' has {} at byte {}, which is not supported", pattern, what, at);
  };
  std::string translated;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const char next = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (c == '\\') {
      ++i;
      if (next == 's') {
        translated += in_class ? std::string(kSpaces) : fmt::format("[{}]", kSpaces);
      } else if (next == 'S' && !in_class) {
        translated += fmt::format("[^{}]", kSpaces);
      } else if (std::isalnum(static_cast<unsigned char>(next)) && std::string_view("rntdDpPx").find(next) == npos) {
        refuse(i - 1, "an escape of another kind than \\r \\n \\t \\d \\D \\s \\p \\P \\x or \\S outside [...]");
      } else {
        (translated += c) += next;
      }
      continue;
    }
    if (in_class ? c == '[' || (c == '&' && next == '&') : c == '^' || c == '$') {
      refuse(i, in_class ? "a class inside a class" : "an anchor");
    }
    translated += c;
    if (c == ']') in_class = false;
    if (c != '[') continue;
    in_class = true;
    if (next == '^') translated += pattern[++i];
    if (pattern.compare(i + 1, 1, "]") == 0) refuse(i + 1, "a class that is empty or begins with ]");
  }
  return translated;
}

}  // namespace

struct SplitPattern::Code {
  explicit Code(const std::string& pattern) {
    const std::string translated = for_pcre2(pattern);
    int error = 0;
    PCRE2_SIZE at = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), kOptions, &error, &at,
                         nullptr);
    if (code == nullptr) fail("the pattern '{}' is refused by PCRE2: {}", pattern, message_of(error));
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT, pcre2_match interprets
  }
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  pcre2_code* code;
};

SplitPattern::SplitPattern(const std::string& pattern) : code_(std::make_unique<Code>(pattern)) {}
SplitPattern::~SplitPattern() = default;
SplitPattern::SplitPattern(SplitPattern&&) noexcept = default;

struct SplitPattern::Scratch::State {
  State() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~State() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(match);
  }
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackBytes[0], kJitStackBytes[1], nullptr);
};

SplitPattern::Scratch::Scratch() : state_(std::make_unique<State>()) {}
SplitPattern::Scratch::~Scratch() = default;

void SplitPattern::split(std::string_view text, Scratch& scratch,
                         const std::function<void(std::string_view)>& piece) const {
  const auto& state = *scratch.state_;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* match = pcre2_get_ovector_pointer(state.match);
  size_t done = 0;  // pieces were given up to here
  for (size_t from = 0; from < text.size();) {
    const int found =
        pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, state.match, state.context);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) fail("cannot part the text into words at byte {}: {}", from, message_of(found));
    const auto [begin, end] = std::pair(match[0], match[1]);
    if (begin < from || end < begin) fail("the pattern that parts the text into words steps back at byte {}", from);
    if (begin > done) piece(text.substr(done, begin - done));
    if (end > begin) piece(text.substr(begin, end - begin));
    done = from = end;
    if (end > begin) continue;
    // An empty match parts the text where it stands, and the next one is looked for behind the following character.
    do ++from;
    while (from < text.size() && (text[from] & 0xC0) == 0x80);
  }
  if (done < text.size()) piece(text.substr(done));
}

}  // namespace uniattn
