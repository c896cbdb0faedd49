#include "commands/commands.h"
#include "commands/options.h"
#include "commands/pipeline.h"
#include "support/error.h"

namespace uniattn {
namespace {

struct ExportArguments {
  std::string run, out;
  std::vector<std::string> overrides;
  bool json = false;
};

void run_export(const ExportArguments& arguments) {
  const RunDirectory run{arguments.run};
  const Session session = open_session(run.config(), arguments.overrides);
  export_run(session, run, arguments.out);
  print_result(arguments.json, {{"export", arguments.out}}, fmt::format("export: {}", arguments.out));
}

}  // namespace

void add_export(CLI::App& program) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* command =
      program.add_subcommand("export", "A run's newest state, calibrated or trained, as a Hugging Face directory");
  command->add_option("run", arguments->run, "Run directory")->required()->check(CLI::ExistingDirectory);
  command
      ->add_option("overrides", arguments->overrides,
                   "export.dtype=float32 and the like, in place of what the run's config.yaml says")
      ->type_name("KEY=VALUE");
  command->add_option("--out", arguments->out, "Directory to write")->required();
  command->add_flag("--json", arguments->json, "Print the result as one JSON object");
  command->footer("Example: uniattn export runs/pmc-uniattn --out models/llama-3.1-8b-uniattn");
  command->callback([arguments] { run_export(*arguments); });
}

}  // namespace uniattn
