// Where the records of a data file are. Nothing is parsed or copied, so a file of any size costs 32 bytes per record.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "storage/mapped_file.h"

namespace uniattn {

struct Record {
  std::string_view text;  // part of the mapped file
  int64_t number;         // from 1
  int64_t line;           // of its first character, from 1
};

// The whole file as one record; none when it is empty.
std::vector<Record> whole_record(const MappedFile& file);

// Lines that are not blank, without their line ends.
std::vector<Record> line_records(const MappedFile& file);

// The elements of the file's JSON list or, when it does not begin with '[', its lines (JSONL).
// Throws Error with file and line for a list that is not closed or is followed by something else.
std::vector<Record> json_records(const MappedFile& file);

}  // namespace uniattn
