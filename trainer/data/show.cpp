#include "data/show.h"

namespace uniattn {
namespace {

// Text of tokens [begin, end), decoded in its context: alone, a first token would lose the space before its word.
std::string text_between(const Document& document, size_t begin, size_t end, const Tokenizer& tokenizer) {
  const auto first = document.tokens.begin();
  const std::string before = tokenizer.decode({first, first + static_cast<int64_t>(begin)});
  const std::string with = tokenizer.decode({first, first + static_cast<int64_t>(end)});
  return with.substr(std::min(before.size(), with.size()));
}

// How a token that stands for no text is shown; "" for the others.
std::string control_text(int32_t id, const Tokenizer& tokenizer) {
  if (id == tokenizer.eos_id()) return "<EOS>";
  return id == tokenizer.bos_id() ? "<BOS>" : tokenizer.special_spelling(id).value_or("");
}

// Text of a run with the same loss, special tokens included.
std::string run_text(const Document& document, size_t begin, size_t end, const Tokenizer& tokenizer) {
  std::string text;
  for (size_t t = begin; t < end;) {
    size_t stop = t;
    while (stop < end && control_text(document.tokens[stop], tokenizer).empty()) ++stop;
    if (stop > t) text += text_between(document, t, stop, tokenizer);
    if (stop < end) text += control_text(document.tokens[stop], tokenizer);
    t = stop + 1;
  }
  return text;
}

}  // namespace

std::string render_sample(const Document& document, const Tokenizer& tokenizer, bool colour) {
  constexpr const char *kGreen = "\033[32m", *kDim = "\033[2m", *kReset = "\033[0m";
  std::string shown;
  for (size_t begin = 0, end; begin < document.tokens.size(); begin = end) {
    const bool supervised = document.supervised[begin] != 0;
    for (end = begin; end < document.tokens.size() && (document.supervised[end] != 0) == supervised;) ++end;
    const std::string text = run_text(document, begin, end, tokenizer);
    if (colour) {
      shown += (supervised ? kGreen : kDim) + text + kReset;
    } else {
      shown += supervised ? "[[" + text + "]]" : text;
    }
  }
  return shown;
}

}  // namespace uniattn
