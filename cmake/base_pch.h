// Precompiled for the parts of the trainer that hold no tensors.
#pragma once
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
