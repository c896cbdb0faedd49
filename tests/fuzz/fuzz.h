// What every fuzz target is: a function over untrusted bytes, which may throw Error and nothing else.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "support/error.h"

// libFuzzer calls `body(bytes)` with one input after another.
#define UNIATTN_FUZZ(body)                                                  \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
    try {                                                                   \
      body(std::string_view(reinterpret_cast<const char*>(data), size));    \
    } catch (const uniattn::Error&) { /* refused, as bad input should be */ \
    }                                                                       \
    return 0;                                                               \
  }
