// The regular expression by which a byte-level tokenizer parts text into words, through PCRE2.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace uniattn {

class SplitPattern {
 public:
  // `pattern` as tokenizer.json and tiktoken write it: UTF-8, Unicode properties, \s as Unicode's White_Space.
  // Throws Error with what PCRE2 says and where in the pattern.
  explicit SplitPattern(const std::string& pattern);
  ~SplitPattern();
  SplitPattern(SplitPattern&&) noexcept;

  // Memory of one thread for matching with any pattern.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class SplitPattern;
    struct State;
    std::unique_ptr<State> state_;
  };

  // Calls `piece` with the matches and what lies between them, in order: together they are `text`, which must be valid
  // UTF-8. Throws Error when the pattern needs more steps than PCRE2 allows.
  void split(std::string_view text, Scratch& scratch, const std::function<void(std::string_view)>& piece) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace uniattn
