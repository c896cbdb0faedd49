// Files of this repository that are compiled into the program.
#pragma once
#include <string_view>

namespace uniattn::embedded {

extern const std::string_view modeling_uniattn_py;

}  // namespace uniattn::embedded
