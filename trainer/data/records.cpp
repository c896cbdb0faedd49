#include "data/records.h"

#include <algorithm>

#include "support/error.h"

namespace uniattn {
namespace {

constexpr std::string_view kBlank = " \t\r\n";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

std::string_view text_of(const MappedFile& file) {
  std::string_view text = file.bytes();
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  return text;
}

// Finds the elements of one JSON list. What is inside an element is left to the parser.
class ListScanner {
 public:
  ListScanner(std::string_view text, const std::string& path) : text_(text), path_(path) {}

  std::vector<Record> scan() {
    at_ = text_.find('[') + 1;
    line_ += std::count(text_.begin(), text_.begin() + static_cast<int64_t>(at_), '\n');
    begin_element(at_);
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
        end_element();
        begin_element(at_ + 1);
      } else if ((c == ']' || c == '}') && depth-- == 0) {
        return close_list();
      }
    }
    fail("{}:{}: the JSON list is not closed at the end of the file: cut off?", path_, line_);
  }

 private:
  void begin_element(size_t at) {
    begin_ = at;
    begin_line_ = line_;
  }

  void end_element() {
    std::string_view element = text_.substr(begin_, at_ - begin_);
    const size_t blank = std::min(element.find_first_not_of(kBlank), element.size());
    const int64_t line = begin_line_ + std::count(element.begin(), element.begin() + static_cast<int64_t>(blank), '\n');
    records_.push_back({element.substr(blank), static_cast<int64_t>(records_.size()) + 1, line});
  }

  void skip_string() {
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\n') fail("{}:{}: invalid JSON: a string does not end on its line", path_, line_);
      if (text_[at_] == '\\') ++at_;
    }
  }

  std::vector<Record> close_list() {
    const bool empty = records_.empty() && text_.substr(begin_, at_ - begin_).find_first_not_of(kBlank) == text_.npos;
    if (!empty) end_element();
    if (text_[at_] != ']') fail("{}:{}: invalid JSON: expected ']' at the end of the list, got '}}'", path_, line_);
    const size_t rest = text_.find_first_not_of(kBlank, at_ + 1);
    if (rest != text_.npos) fail("{}:{}: invalid JSON: something follows the end of the list", path_, line_);
    return std::move(records_);
  }

  std::string_view text_;
  const std::string& path_;
  std::vector<Record> records_;
  size_t at_ = 0, begin_ = 0;
  int64_t line_ = 1, begin_line_ = 1;
};

}  // namespace

std::vector<Record> whole_record(const MappedFile& file) {
  const std::string_view text = text_of(file);
  return text.empty() ? std::vector<Record>{} : std::vector<Record>{{text, 1, 1}};
}

std::vector<Record> line_records(const MappedFile& file) {
  std::vector<Record> records;
  std::string_view rest = text_of(file);
  for (int64_t line = 1; !rest.empty(); ++line) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view text = rest.substr(0, end);
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (text.find_first_not_of(kBlank) != text.npos) {
      records.push_back({text, static_cast<int64_t>(records.size()) + 1, line});
    }
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return records;
}

std::vector<Record> json_records(const MappedFile& file) {
  const std::string_view text = text_of(file);
  const size_t first = text.find_first_not_of(kBlank);
  if (first == text.npos || text[first] != '[') return line_records(file);
  return ListScanner(text, file.path()).scan();
}

}  // namespace uniattn
