// White space as Python's str.strip() knows it, which is what chat templates trim by.
#pragma once
#include <string_view>

namespace uniattn {

// `text` without the white space at both ends.
std::string_view strip(std::string_view text);

}  // namespace uniattn
