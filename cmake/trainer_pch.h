// Precompiled for the trainer: PyTorch's headers and the large ones of other libraries, which cost more to parse than
// our own code.
#pragma once
#include "torch_pch.h"
// clang-format off
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
