#include "commands/commands.h"
#include "commands/options.h"
#include "report/page.h"
#include "storage/atomic_file.h"

namespace uniattn {
namespace {

struct ReportArguments {
  std::vector<std::string> runs;
  std::string out = "report.html";
  bool json = false;
};

void run_report(const ReportArguments& arguments) {
  std::vector<RunRecord> runs;
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const std::string& path : arguments.runs) {
    runs.push_back(read_run(path));
    const RunRecord& run = runs.back();
    rows.push_back({{"run", run.path}, {"name", run.name}, {"outcome", run.outcome}, {"steps", run.steps.size()}});
    if (const auto loss = run.final_held_out_loss()) rows.back()["held_out_loss"] = *loss;
  }
  write_file_atomically(arguments.out, report_page(runs));
  print_result(arguments.json, {{"report", arguments.out}, {"runs", rows}},
               fmt::format("report of {} runs: {}", runs.size(), arguments.out));
}

}  // namespace

void add_report(CLI::App& program) {
  auto arguments = std::make_shared<ReportArguments>();
  CLI::App* command = program.add_subcommand("report", "Runs side by side on one HTML page");
  command->add_option("runs", arguments->runs, "Run directories; the first is what the others are compared with")
      ->required();
  command->add_option("--out", arguments->out, "The page to write")->capture_default_str();
  command->add_flag("--json", arguments->json, "Print the result as one JSON object");
  command->footer("Example: uniattn report runs/quickstart/* --out report.html");
  command->callback([arguments] { run_report(*arguments); });
}

}  // namespace uniattn
