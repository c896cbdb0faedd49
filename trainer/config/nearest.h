// The known name that a misspelt one most likely means.
#pragma once
#include <string>
#include <vector>

namespace uniattn {

// The member of `known` (not empty) with the fewest single-letter edits to `name`; the first of several.
std::string nearest(const std::string& name, const std::vector<std::string>& known);

}  // namespace uniattn
