#include "fuzz.h"
#include "model/config.h"
#include "storage/json.h"

UNIATTN_FUZZ([](std::string_view bytes) {
  const nlohmann::json json = uniattn::parse_json(bytes, "fuzz");
  const uniattn::ModelConfig config = uniattn::parse_model_config(json);
  uniattn::parse_plan(json, config).validate(config.plan_limits());
})
