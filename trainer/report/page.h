// Runs side by side on one HTML page.
#pragma once
#include <string>
#include <vector>

#include "report/run_record.h"

namespace uniattn {

// A whole document, style and pictures included: it needs no other file and no network. At least one run.
std::string report_page(const std::vector<RunRecord>& runs);

}  // namespace uniattn
