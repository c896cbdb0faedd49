// From the `plan` section of a configuration to the SharingPlan of a model.
#pragma once
#include "config/config.h"
#include "plan/plan.h"

namespace uniattn {

// Reads the plan file when the section names one. Throws UsageError for a layer that the model does not have or that is
// listed twice, and for whatever is wrong in the file, with its line. The rest of what a plan must fit is for
// SharingPlan::validate to check.
SharingPlan build_plan(const PlanConfig& config, int64_t num_layers);

Compensation compensation_of(const CompensationConfig& config);

// What `plan.file` reads: the layers of a plan that are not as in the base, one per line.
std::string plan_yaml(const SharingPlan& plan);

}  // namespace uniattn
