// What can be said of a section from its `visit` alone.
#pragma once
#include <string>
#include <vector>

namespace uniattn {

struct AnyVisitor {
  template <class T>
  void operator()(const char*, T&) {}
};

// A struct whose `visit` calls the visitor with the name and the reference of every field.
template <class T>
concept Section = requires(T section, AnyVisitor visitor) {
  section.visit(visitor);
};

template <Section S>
std::vector<std::string> field_names() {
  std::vector<std::string> names;
  const auto collect = [&](const char* name, auto&) { names.emplace_back(name); };
  S{}.visit(collect);
  return names;
}

}  // namespace uniattn
