// The records of a data file, one after the other. Nothing is parsed or copied.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "storage/mapped_file.h"

namespace uniattn {

struct Record {
  std::string_view text;  // part of the mapped file
  int64_t number;         // from 1
  int64_t line;           // of its first character, from 1
};

class RecordReader {
 public:
  // whole: the file is one record, none when it is empty. lines: lines that are not blank, without their line ends.
  // json: the elements of the file's JSON list or, when it does not begin with '[', its lines.
  enum class Kind { whole, lines, json };
  // `file` must outlive this and the records.
  RecordReader(const MappedFile& file, Kind kind);

  // nullopt at the end. Throws Error with file and line for a list that is not closed or is followed by something else.
  std::optional<Record> next();

  // Lets go of the memory of what was read so far; records that were returned are read from the file again if need be.
  void release();

 private:
  std::optional<Record> next_line();
  std::optional<Record> next_element();
  Record element(size_t begin, int64_t line);
  void skip_string();
  void close_list();

  const MappedFile& file_;
  std::string_view text_;
  Kind kind_;
  size_t at_ = 0;
  int64_t line_ = 1, number_ = 0;
  bool list_closed_ = false;
};

}  // namespace uniattn
