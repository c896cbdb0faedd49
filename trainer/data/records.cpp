#include "data/records.h"

#include <algorithm>

#include "support/error.h"

namespace uniattn {
namespace {

constexpr std::string_view kBlank = " \t\r\n";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

bool is_blank(std::string_view text) {
  return text.find_first_not_of(kBlank) == text.npos;
}

}  // namespace

RecordReader::RecordReader(const MappedFile& file, Kind kind) : file_(file), text_(file.bytes()), kind_(kind) {
  if (text_.starts_with(kByteOrderMark)) at_ = kByteOrderMark.size();
  if (kind != Kind::json) return;
  const size_t first = text_.find_first_not_of(kBlank, at_);
  if (first == text_.npos || text_[first] != '[') {
    kind_ = Kind::lines;
    return;
  }
  line_ += std::count(text_.begin(), text_.begin() + static_cast<int64_t>(first), '\n');
  at_ = first + 1;
}

std::optional<Record> RecordReader::next() {
  if (kind_ == Kind::lines) return next_line();
  if (kind_ == Kind::json) return next_element();
  if (at_ == text_.size()) return std::nullopt;
  const Record whole{text_.substr(at_), ++number_, 1};
  at_ = text_.size();
  return whole;
}

void RecordReader::release() {
  file_.release(at_);
}

std::optional<Record> RecordReader::next_line() {
  while (at_ < text_.size()) {
    const size_t end = std::min(text_.find('\n', at_), text_.size());
    std::string_view text = text_.substr(at_, end - at_);
    at_ = std::min(end + 1, text_.size());
    const int64_t line = line_++;
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (!is_blank(text)) return Record{text, ++number_, line};
  }
  return std::nullopt;
}

// What is inside an element is left to the parser.
std::optional<Record> RecordReader::next_element() {
  if (list_closed_) return std::nullopt;
  const size_t begin = at_;
  const int64_t begin_line = line_;
  int64_t depth = 0;
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c == '\n') {
      ++line_;
    } else if (c == '"') {
      skip_string();
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ',' && depth == 0) {
      const Record record = element(begin, begin_line);
      ++at_;
      return record;
    } else if ((c == ']' || c == '}') && depth-- == 0) {
      close_list();
      if (number_ == 0 && is_blank(text_.substr(begin, at_ - begin))) return std::nullopt;
      return element(begin, begin_line);
    }
  }
  fail("{}:{}: the JSON list is not closed at the end of the file: cut off?", file_.path(), line_);
}

// From `begin` up to here, without the blanks before it.
Record RecordReader::element(size_t begin, int64_t line) {
  std::string_view text = text_.substr(begin, at_ - begin);
  const size_t blank = std::min(text.find_first_not_of(kBlank), text.size());
  line += std::count(text.begin(), text.begin() + static_cast<int64_t>(blank), '\n');
  return {text.substr(blank), ++number_, line};
}

void RecordReader::skip_string() {
  for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
    if (text_[at_] == '\n') fail("{}:{}: invalid JSON: a string does not end on its line", file_.path(), line_);
    if (text_[at_] == '\\') ++at_;
  }
}

void RecordReader::close_list() {
  list_closed_ = true;
  if (text_[at_] != ']')
    fail("{}:{}: invalid JSON: expected ']' at the end of the list, got '}}'", file_.path(), line_);
  if (!is_blank(text_.substr(at_ + 1)))
    fail("{}:{}: invalid JSON: something follows the end of the list", file_.path(), line_);
}

}  // namespace uniattn
