// A sharing plan as a picture: one box per layer, an arc from each follower to its leader.
#pragma once
#include <string>

#include "plan/plan.h"

namespace uniattn {

// Inline SVG, coloured by the page's style sheet: classes `mode-full`, `mode-share_probs` and so on.
std::string plan_picture(const SharingPlan& plan);

}  // namespace uniattn
