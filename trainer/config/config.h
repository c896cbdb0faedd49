// The YAML schema: one struct per section. `visit` names every key once, for reading, writing and documenting
// (config/fields.h).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace uniattn {

// What a key means is in docs/configuration.md; a test compares that page with these structs.
//
// validate() checks one section by itself, Config::validate() all of them and what they say about each other. Both
// throw InvalidKey (a UsageError, config/invalid.h); `where` is the dotted key of the list item that is checked.
// Whether files exist is not their business.

struct RunConfig {
  std::string name{};
  std::string dir{};
  int64_t seed = 42;
  std::optional<double> peak_tflops{};  // of the device in the compute dtype; `auto` (empty): measured
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("name", name), v("dir", dir), v("seed", seed), v("peak_tflops", peak_tflops);
  }
  bool operator==(const RunConfig&) const = default;
};

struct ModelSection {
  std::string path{};
  std::string dtype = "bfloat16";  // float32 | bfloat16: parameters for compute
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("path", path), v("dtype", dtype);
  }
  bool operator==(const ModelSection&) const = default;
};

// Written as none | full | {rank: r}.
struct CompensationConfig {
  std::string kind = "none";  // none | full | low_rank
  int64_t rank = 0;           // low_rank only
  bool operator==(const CompensationConfig&) const = default;
};

struct LayerPlanConfig {
  int64_t layer = -1;
  std::string mode = "full";
  int64_t leader = -1;
  CompensationConfig compensation{};
  std::vector<int64_t> head_map{};
  int64_t num_kv_heads = 0;  // 0: the model's
  std::string mask = "own";  // own | leader
  void validate(const std::string& where) const;
  template <class V>
  void visit(V& v) {
    v("layer", layer), v("mode", mode), v("leader", leader), v("compensation", compensation), v("head_map", head_map),
        v("num_kv_heads", num_kv_heads), v("mask", mask);
  }
  bool operator==(const LayerPlanConfig&) const = default;
};

struct PlanConfig {
  std::string mode = "share_probs";
  int64_t group = 0;  // 0: no short form
  int64_t begin = 0;
  int64_t end = 0;
  CompensationConfig compensation{.kind = "full", .rank = 0};
  int64_t num_kv_heads = 0;               // of the leaders; 0: the model's
  std::string mask = "own";               // of the followers: own | leader
  std::vector<LayerPlanConfig> layers{};  // the layers that are not as in the base
  std::string file{};                     // a YAML file with a `layers` list
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("mode", mode), v("group", group), v("begin", begin), v("end", end), v("compensation", compensation),
        v("num_kv_heads", num_kv_heads), v("mask", mask), v("layers", layers), v("file", file);
  }
  bool operator==(const PlanConfig&) const = default;
};

struct DataSource {
  std::string path{};
  std::string format{};         // alpaca | messages | tulu_single_round | text | ids
  std::string template_name{};  // a chat template (data/templates.h); "": the format's own
  double weight = 1.0;          // epochs over this set per epoch of the mixture
  void validate(const std::string& where) const;
  template <class V>
  void visit(V& v) {
    v("path", path), v("format", format), v("template", template_name), v("weight", weight);
  }
  bool operator==(const DataSource&) const = default;
};

// What chooses the ranks of the compensations; at most one is given.
struct RanksConfig {
  double energy = 0;      // share of what a full matrix explains, to be kept in each layer
  double parameters = 0;  // of all compensations together, as a share of the base model's
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("energy", energy), v("parameters", parameters);
  }
  bool operator==(const RanksConfig&) const = default;
};

struct CalibrationConfig {
  std::vector<DataSource> data{};
  int64_t samples = 1000;       // documents, taken in a seeded order over all sets; 0 is all
  double held_out = 0.1;        // share of the documents that chooses the ridge
  std::optional<double> ridge;  // `auto` (empty): chosen on the held-out documents
  std::vector<std::string> fit = {"head_map", "value", "output", "compensation"};
  RanksConfig ranks{};
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("data", data), v("samples", samples), v("held_out", held_out), v("ridge", ridge), v("fit", fit),
        v("ranks", ranks);
  }
  bool operator==(const CalibrationConfig&) const = default;
};

// How much a plan may cost; exactly one is given. Shares are of the base model's.
struct SearchBudget {
  int64_t followers = 0;       // exactly as many layers that are not full
  double kv_bytes = 0;         // share of the KV cache's bytes per token
  double attention_flops = 0;  // share of attention's work per decoded token after data.max_length tokens
  double parameters = 0;       // share of the parameters
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("followers", followers), v("kv_bytes", kv_bytes), v("attention_flops", attention_flops),
        v("parameters", parameters);
  }
  bool operator==(const SearchBudget&) const = default;
};

struct SearchConfig {
  SearchBudget budget{};
  std::vector<std::string> modes = {"share_probs"};
  int64_t max_group = 4;  // layers of the longest superblock, its leader included
  CompensationConfig compensation{.kind = "full", .rank = 0};
  int64_t rescore = 4;  // plans of the least estimated loss that are calibrated and measured whole
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("budget", budget), v("modes", modes), v("max_group", max_group), v("compensation", compensation),
        v("rescore", rescore);
  }
  bool operator==(const SearchConfig&) const = default;
};

struct DataConfig {
  std::vector<DataSource> train{};
  std::vector<DataSource> eval{};
  int64_t max_length = 1024;
  bool pack = true;
  std::string over_long = "truncate";  // truncate | drop | split | error
  std::string bad_records = "drop";    // drop | error: records that cannot be read
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("train", train), v("eval", eval), v("max_length", max_length), v("pack", pack), v("over_long", over_long),
        v("bad_records", bad_records);
  }
  bool operator==(const DataConfig&) const = default;
};

// Written as compensation | all | [pattern, ...].
struct TrainedSet {
  std::string kind = "all";             // compensation | all | patterns
  std::vector<std::string> patterns{};  // of checkpoint tensor names, with * and ?
  bool operator==(const TrainedSet&) const = default;
};

// The base model as a teacher.
struct DistillConfig {
  std::string target{};      // attention | logits
  double weight = 1.0;       // of distillation in the loss; cross-entropy has the rest
  double temperature = 1.0;  // logits only
  void validate(const std::string& where) const;
  template <class V>
  void visit(V& v) {
    v("target", target), v("weight", weight), v("temperature", temperature);
  }
  bool operator==(const DistillConfig&) const = default;
};

struct StageConfig {
  std::string name{};
  TrainedSet train{};
  double epochs = 0;
  int64_t max_steps = 0;  // one of epochs and max_steps is set
  double learning_rate = 0;
  std::optional<DistillConfig> distill{};
  void validate(const std::string& where) const;
  template <class V>
  void visit(V& v) {
    v("name", name), v("train", train), v("epochs", epochs), v("max_steps", max_steps),
        v("learning_rate", learning_rate), v("distill", distill);
  }
  bool operator==(const StageConfig&) const = default;
};

struct OptimizerConfig {
  int64_t micro_batch = 1;
  int64_t accumulation = 1;
  bool activation_checkpointing = false;
  std::string schedule = "cosine";  // cosine | linear | constant | wsd
  double warmup_ratio = 0.03;
  double decay_ratio = 0.1;  // wsd only
  double weight_decay = 0.0;
  double clip_norm = 1.0;  // 0: no clipping
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  std::string moments = "float32";  // float32 | bfloat16
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("micro_batch", micro_batch), v("accumulation", accumulation),
        v("activation_checkpointing", activation_checkpointing), v("schedule", schedule),
        v("warmup_ratio", warmup_ratio), v("decay_ratio", decay_ratio), v("weight_decay", weight_decay),
        v("clip_norm", clip_norm), v("beta1", beta1), v("beta2", beta2), v("eps", eps), v("moments", moments);
  }
  bool operator==(const OptimizerConfig&) const = default;
};

struct CheckpointConfig {
  int64_t every_steps = 200;  // 0: not by steps
  double every_minutes = 0;   // 0: not by time
  int64_t keep_last = 2;
  int64_t keep_best = 0;  // besides the newest, by held-out loss
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("every_steps", every_steps), v("every_minutes", every_minutes), v("keep_last", keep_last),
        v("keep_best", keep_best);
  }
  bool operator==(const CheckpointConfig&) const = default;
};

struct EvaluationConfig {
  int64_t every_steps = 0;  // 0: only at the end of each stage
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("every_steps", every_steps);
  }
  bool operator==(const EvaluationConfig&) const = default;
};

// Texts that are continued while training goes on.
struct SamplesConfig {
  std::vector<std::string> prompts{};
  int64_t every_steps = 100;
  int64_t max_new_tokens = 64;
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("prompts", prompts), v("every_steps", every_steps), v("max_new_tokens", max_new_tokens);
  }
  bool operator==(const SamplesConfig&) const = default;
};

struct ParallelConfig {
  std::string shard = "none";     // none | optimizer | gradients | full: what is divided over the ranks
  int64_t replicas = 1;           // groups of ranks that hold the same slices
  std::string offload = "none";   // none | optimizer: what a GPU keeps in the host's memory
  int64_t timeout_seconds = 600;  // after which a silent rank ends the run
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("shard", shard), v("replicas", replicas), v("offload", offload), v("timeout_seconds", timeout_seconds);
  }
  bool operator==(const ParallelConfig&) const = default;
};

struct ExportConfig {
  std::string dtype = "bfloat16";  // float32 | bfloat16 | float16
  double max_shard_gb = 5.0;
  void validate() const;
  template <class V>
  void visit(V& v) {
    v("dtype", dtype), v("max_shard_gb", max_shard_gb);
  }
  bool operator==(const ExportConfig&) const = default;
};

struct Config {
  RunConfig run;
  ModelSection model;
  std::optional<PlanConfig> plan;                // absent: plain fine-tuning
  std::optional<CalibrationConfig> calibration;  // absent: compensation starts at zero
  std::optional<SearchConfig> search;            // for `uniattn plan` alone
  DataConfig data;
  std::vector<StageConfig> stages{};
  OptimizerConfig optimizer;
  CheckpointConfig checkpoint;
  EvaluationConfig evaluation;
  SamplesConfig samples;
  ParallelConfig parallel;
  ExportConfig exporting;
  template <class V>
  void visit(V& v) {
    v("run", run), v("model", model), v("plan", plan), v("calibration", calibration), v("search", search),
        v("data", data), v("stages", stages), v("optimizer", optimizer), v("checkpoint", checkpoint),
        v("evaluation", evaluation), v("samples", samples), v("parallel", parallel), v("export", exporting);
  }
  void validate() const;
  bool operator==(const Config&) const = default;
};

// Reads `path`, then applies overrides "key.path=value" (values are YAML; list items by number: stages.0.epochs=2).
// Relative paths are relative to the working directory. Throws UsageError with file and line, and the nearest known key
// for an unknown one.
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {});

// The whole configuration, defaults included, as YAML that load_config reads back to the same.
std::string to_yaml(const Config& config);

// Every key as a dotted path, list items as `[]`: "stages[].epochs".
std::vector<std::string> config_keys();

}  // namespace uniattn
