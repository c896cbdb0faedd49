// The phases of a run, shared by the commands that a config file drives: each does what is left of it.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "calibration/calibrate.h"
#include "checkpoint/run_directory.h"
#include "data/prepare.h"
#include "train/evaluate.h"
#include "train/trainer.h"

namespace uniattn {

// A configuration with its model opened and both checked against each other; no weight is loaded.
struct Session {
  Config config;
  ModelDirectory model;
  SharingPlan plan;
  std::unique_ptr<Tokenizer> tokenizer;
};

Session open_session(const std::string& config_path, const std::vector<std::string>& overrides);
Session open_session(Config config);

struct PreparedData {
  std::optional<TokenShards> calibration, train, eval;
};

// Tokenizes every data set that the configuration names; one process at a time, the others find it done.
PreparedData prepare_data(const Session& session, const RunDirectory& run);

CalibrationOptions calibration_options(const CalibrationConfig& asked, const ModelConfig& model);

// The init calculation, unless it is done or not asked for. Stopped by a signal, it continues where it was.
Outcome calibrate_run(const Session& session, const RunDirectory& run, const PreparedData& data, ProcessGroup& group);

Outcome train_run(const Session& session, const RunDirectory& run, const PreparedData& data, ProcessGroup& group,
                  const TrainOptions& options);

// The newest state as a Hugging Face directory at `out`.
void export_run(const Session& session, const RunDirectory& run, const std::string& out);

// The tokenizer of a model directory; where there is none, one that knows the vocabulary's size and refuses text, so
// that pre-tokenized data still works.
std::unique_ptr<Tokenizer> tokenizer_or_ids_only(const ModelDirectory& model);

// A model directory in memory.
Decoder load_decoder(const ModelDirectory& model, at::ScalarType dtype, at::Device device);

}  // namespace uniattn
