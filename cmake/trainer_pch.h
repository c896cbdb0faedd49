// Precompiled for the trainer. Not all of cmake/torch_pch.h: what only operators need would cost every file a second.
#pragma once
#include <ATen/ATen.h>
#include <CLI/CLI.hpp>
#include "base_pch.h"
