// From the structs of config.h to YAML.
#include <yaml-cpp/yaml.h>

#include "config/config.h"
#include "config/fields.h"
#include "support/error.h"

namespace uniattn {
namespace {

void write(YAML::Emitter& out, std::string& field) {
  out << field;
}
void write(YAML::Emitter& out, int64_t& field) {
  out << field;
}
void write(YAML::Emitter& out, bool& field) {
  out << field;
}
// The shortest digits that read back to the same number.
void write(YAML::Emitter& out, double& field) {
  out << fmt::format("{}", field);
}

void write(YAML::Emitter& out, std::optional<double>& field) {
  if (field) {
    write(out, *field);
  } else {
    out << "auto";
  }
}

void write(YAML::Emitter& out, CompensationConfig& field) {
  if (field.kind == "low_rank") {
    out << YAML::Flow << YAML::BeginMap << "rank" << field.rank << YAML::EndMap;
  } else {
    out << field.kind;
  }
}

void write(YAML::Emitter& out, TrainedSet& field) {
  if (field.kind == "patterns") {
    out << YAML::Flow << field.patterns;
  } else {
    out << field.kind;
  }
}

template <Section S>
void write(YAML::Emitter& out, S& section);

template <class T>
void write(YAML::Emitter& out, std::vector<T>& list) {
  if (!Section<T> || list.empty()) out << YAML::Flow;
  out << YAML::BeginSeq;
  for (T& item : list) write(out, item);
  out << YAML::EndSeq;
}

struct FieldWriter {
  YAML::Emitter& out;

  template <class T>
  void operator()(const char* name, T& field) {
    out << name;
    write(out, field);
  }
  template <Section S>
  void operator()(const char* name, std::optional<S>& section) {
    if (section) (*this)(name, *section);
  }
};

template <Section S>
void write(YAML::Emitter& out, S& section) {
  out << YAML::BeginMap;
  FieldWriter writer{out};
  section.visit(writer);
  out << YAML::EndMap;
}

}  // namespace

std::string to_yaml(const Config& config) {
  Config copy = config;  // `visit` is not const
  YAML::Emitter out;
  write(out, copy);
  return std::string(out.c_str()) + "\n";
}

}  // namespace uniattn
