// What a calibration did, for files and for people.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "calibration/calibrate.h"

namespace uniattn {

// {"fitted_tokens", "held_out_tokens", "layers": [...]}, one entry per layer that the plan changes.
nlohmann::ordered_json report_json(const CalibrationResult& result);

// A table of the same, with a bar per layer for what is missing from the stream: `report` is what report_json gave.
std::string report_text(const nlohmann::json& report);

}  // namespace uniattn
