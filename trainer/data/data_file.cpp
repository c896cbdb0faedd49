#include "data/data_file.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "data/formats.h"
#include "storage/hash.h"
#include "storage/json.h"
#include "support/error.h"

namespace uniattn {
namespace {

std::string extension_of(const DataSource& source) {
  return std::filesystem::path(source.path).extension().string();
}

void check_format(const DataSource& source) {
  constexpr std::array kFormats = {"alpaca", "messages", "tulu_single_round", "text", "ids"};
  if (std::ranges::find(kFormats, source.format) != kFormats.end()) return;
  fail_usage("{}: expected the format alpaca, messages, tulu_single_round, text or ids, got '{}'", source.path,
             source.format);
}

bool holds_json(const DataSource& source) {
  if (source.format == "ids") return false;
  return source.format != "text" || extension_of(source) == ".json" || extension_of(source) == ".jsonl";
}

RecordReader::Kind kind_of(const DataSource& source) {
  if (source.format == "ids") return RecordReader::Kind::lines;
  if (!holds_json(source)) return RecordReader::Kind::whole;
  // A record that begins with '[' is no list in a file of lines.
  return extension_of(source) == ".jsonl" ? RecordReader::Kind::lines : RecordReader::Kind::json;
}

}  // namespace

std::string template_of(const DataSource& source) {
  return source.template_name.empty() ? default_template(source.format) : source.template_name;
}

DataFile::DataFile(const DataSource& source)
    : source_(source),
      template_(template_of(source)),
      json_(holds_json(source)),
      kind_(kind_of(source)),
      file_(source.path) {
  check_format(source);
}

void DataFile::check(const Tokenizer& tokenizer) const {
  if (!template_.empty()) check_template(template_, tokenizer);
}

std::optional<TokenizedDocument> DataFile::tokenize(const Record& record, const Tokenizer& tokenizer) const {
  if (source_.format == "ids") return read_ids(record.text, tokenizer.vocab_size());
  const nlohmann::json parsed =
      json_ ? parse_json(record.text, "the record") : nlohmann::json(std::string(record.text));
  const auto pieces = render_record(source_.format, template_, parsed);
  if (!pieces) return std::nullopt;
  return tokenize_pieces(*pieces, tokenizer);
}

nlohmann::json DataFile::key() const {
  return {file_hash(source_.path), source_.format, template_, static_cast<int>(kind_), source_.weight};
}

}  // namespace uniattn
