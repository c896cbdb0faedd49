// One file of a data set: its records, and what each becomes as a document.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "config/config.h"
#include "data/records.h"
#include "data/tokenize.h"
#include "tokenizer/tokenizer.h"

namespace uniattn {

// The template (data/templates.h) that the source's records are written in; "" for ids.
std::string template_of(const DataSource& source);

class DataFile {
 public:
  // `source` must outlive this. Throws Error when the file cannot be opened, UsageError for an unknown format or
  // template.
  explicit DataFile(const DataSource& source);

  const DataSource& source() const { return source_; }
  int64_t bytes() const { return static_cast<int64_t>(file_.bytes().size()); }
  RecordReader records() const { return {file_, kind_}; }

  // Throws Error when the tokenizer lacks what the template needs.
  void check(const Tokenizer& tokenizer) const;

  // nullopt when the format's filter leaves the record out. Throws Error for a record that cannot be read.
  std::optional<TokenizedDocument> tokenize(const Record& record, const Tokenizer& tokenizer) const;

  // What the documents depend on: the file's contents, and how they are read.
  nlohmann::json key() const;

 private:
  const DataSource& source_;
  std::string template_;  // "" for ids
  bool json_;
  RecordReader::Kind kind_;
  MappedFile file_;
};

}  // namespace uniattn
