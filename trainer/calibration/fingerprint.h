// What the results of calibrations depend on.
#pragma once
#include <string>

#include "calibration/calibrate.h"

namespace uniattn {

// A hash of the model's configuration and weights, the tokens and what is fitted to them. Of the weight files sizes and
// times count, not the bytes, which take minutes to read in a large model.
std::string calibration_fingerprint(const ModelDirectory& model, const TokenShards& data,
                                    const CalibrationOptions& options);

}  // namespace uniattn
