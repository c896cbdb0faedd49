#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "commands/commands.h"
#include "support/error.h"

namespace uniattn {
namespace {

// An installed package says which Python it belongs to; a build uses the one that it was configured with, and the
// package of the source tree.
std::string python() {
  if (const char* installed = std::getenv("UNIATTN_PYTHON")) return installed;
  const char* others = std::getenv("PYTHONPATH");
  const std::string path = others ? std::string(UNIATTN_PYTHON_PACKAGE ":") + others : UNIATTN_PYTHON_PACKAGE;
  setenv("PYTHONPATH", path.c_str(), 1);
  return UNIATTN_PYTHON_EXECUTABLE;
}

// The benchmarks are Python, where the peers are; they start this program for its own side.
void run_bench(const std::string& name, const std::vector<std::string>& arguments) {
  setenv("UNIATTN_BINARY", std::filesystem::read_symlink("/proc/self/exe").c_str(), 1);
  std::vector<std::string> words{python(), "-m", "uniattn.bench." + name};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  fail("cannot start `{}` for the benchmark: {}; set UNIATTN_PYTHON to a Python that has torch and transformers",
       words[0], std::strerror(errno));
}

}  // namespace

void add_bench(CLI::App& program) {
  CLI::App* bench = program.add_subcommand("bench", "Measure, side by side with the peers that are installed");
  bench->require_subcommand(1);
  bench->footer("Example: uniattn bench attention --group 4 --tokens 1024 --dtype float32");
  const auto add = [&](const std::string& name, const std::string& description) {
    CLI::App* command = bench->add_subcommand(name, description);
    command->set_help_flag();  // the benchmark has its own
    command->prefix_command();
    command->callback([name, command] { run_bench(name, command->remaining()); });
  };
  add("attention", "A superblock against as many calls of PyTorch's attention");
  add("calibrate", "The init calculation against the published one");
  add("decode", "Generated tokens against those of transformers");
  add("prefill", "Time to the first token against transformers");
  add("train", "A training step against a loop over transformers");
}

}  // namespace uniattn
