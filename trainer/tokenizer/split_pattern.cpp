#include "tokenizer/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>

#include "support/error.h"
#include "tokenizer/pattern_dialect.h"

namespace uniattn {
namespace {

constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
constexpr size_t kJitStackBytes[] = {32 << 10, 8 << 20};  // at the start, at most

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
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
