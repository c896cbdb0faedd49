#include "fuzz.h"
#include "round_trip.h"

UNIATTN_FUZZ([](std::string_view bytes) { uniattn::round_trip(uniattn::parse_tokenizer_json(bytes, "fuzz")); })
