#include "fuzz.h"
#include "storage/safetensors_format.h"

UNIATTN_FUZZ([](std::string_view bytes) { uniattn::safetensors::parse_header(bytes, "fuzz"); })
