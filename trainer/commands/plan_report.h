// What `uniattn plan` shows of a search.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "calibration/plan_search.h"

namespace uniattn {

nlohmann::ordered_json plan_report(const ModelConfig& config, const PlanSearchResult& result);

// The plan that was found as a table with a picture of its superblocks, and the plans that were measured beside it.
std::string plan_text(const ModelConfig& config, const PlanSearchResult& result);

// The plan file, with a comment on where it comes from.
std::string plan_file(const ModelConfig& config, const PlanSearchResult& result);

}  // namespace uniattn
