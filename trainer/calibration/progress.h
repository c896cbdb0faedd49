// An unfinished calibration on disk.
#pragma once
#include <optional>

#include "calibration/calibrate.h"

namespace uniattn {

struct Progress {
  int64_t next_layer = 0;
  CalibrationResult result;  // so far
  NamedTensors states;       // of this rank's documents before that layer
};

// Every rank saves its own; `fingerprint` names the model, the data and the settings that it is valid for.
void save_progress(const std::string& directory, const std::string& fingerprint, const Progress& progress,
                   ProcessGroup& group);

// The newest progress that all ranks have; empty when there is none for this fingerprint.
std::optional<Progress> load_progress(const std::string& directory, const std::string& fingerprint,
                                      const ModelConfig& config, ProcessGroup& group);

}  // namespace uniattn
