#include "tokenizer/pattern_dialect.h"

#include <array>
#include <cctype>
#include <string_view>

#include "support/error.h"
#include "tokenizer/unicode_additions.h"

namespace uniattn {
namespace {

// PCRE2's \s also takes U+180E, which left White_Space in Unicode 6.3.
constexpr std::string_view kSpaces =
    R"(\t-\r\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// An escape that PCRE2 reads differently, its negation, and what to write inside [...] for it.
struct Set {
  std::string_view escape, negation;
  std::string members;
};

const std::array<Set, 3>& sets() {
  static const std::array<Set, 3> sets = {{{R"(\s)", R"(\S)", std::string(kSpaces)},
                                           {R"(\p{L})", R"(\P{L})", fmt::format(R"(\p{{L}}{})", kNewLetters)},
                                           {R"(\p{N})", R"(\P{N})", fmt::format(R"(\p{{N}}{})", kNewNumbers)}}};
  return sets;
}

class Translation {
 public:
  explicit Translation(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      if (pattern_[at_] == '\\') {
        take_escape();
      } else {
        take_character();
      }
    }
    return std::move(out_);
  }

 private:
  std::string_view rest() const { return pattern_.substr(at_); }

  void take(size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }

  void take_escape() {
    for (const auto& [escape, negation, members] : sets()) {
      if (rest().starts_with(escape)) {
        out_ += in_class_ ? members : fmt::format("[{}]", members);
        at_ += escape.size();
        return;
      }
      if (rest().starts_with(negation)) {
        if (in_class_) refuse(fmt::format("{} inside [...]", negation));
        out_ += fmt::format("[^{}]", members);
        at_ += negation.size();
        return;
      }
    }
    const char escaped = rest().size() > 1 ? rest()[1] : '\0';
    if (std::isalnum(static_cast<unsigned char>(escaped)) &&
        std::string_view("rntdDpPx").find(escaped) == std::string_view::npos) {
      refuse("an escape other than \\r \\n \\t \\d \\D \\s \\S \\p \\P \\x");
    }
    take(2);
  }

  void take_character() {
    const bool nested = in_class_ && (rest().starts_with('[') || rest().starts_with("&&"));
    if (nested) refuse("a class inside a class");
    if (!in_class_ && (rest().starts_with('^') || rest().starts_with('$'))) refuse("an anchor");
    if (rest().starts_with('[')) {
      in_class_ = true;
      take(rest().starts_with("[^") ? 2 : 1);
      if (rest().starts_with(']')) refuse("a class that is empty or begins with ]");
      return;
    }
    if (rest().starts_with(']')) in_class_ = false;
    take(1);
  }

  [[noreturn]] void refuse(std::string_view what) const {
    fail("the pattern '{}' has {} at byte {}, which is not supported", pattern_, what, at_);
  }

  std::string_view pattern_;
  size_t at_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

std::string for_pcre2(const std::string& pattern) {
  return Translation(pattern).run();
}

}  // namespace uniattn
