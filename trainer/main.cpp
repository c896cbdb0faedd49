#include <CLI/CLI.hpp>
#include <exception>

#include "commands/commands.h"
#include "parallel/process_group.h"
#include "support/error.h"
#include "support/log.h"

int main(int argc, char** argv) {
  CLI::App program(
      "uniattn: post-train a language model so that neighbouring layers share one softmax attention pattern.");
  program.require_subcommand(1);
  program.set_help_all_flag("--help-all", "Help of all commands");
  uniattn::add_run(program);
  uniattn::add_prepare(program);
  uniattn::add_calibrate(program);
  uniattn::add_train(program);
  uniattn::add_export(program);
  uniattn::add_eval(program);
  uniattn::add_generate(program);
  uniattn::add_tokenize(program);
  uniattn::add_inspect(program);
  uniattn::add_plan(program);
  uniattn::add_bench(program);
  uniattn::add_report(program);
  try {
    program.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : 2;
  } catch (const uniattn::UsageError& error) {
    uniattn::log::error(uniattn::last_words(error));
    return 2;
  } catch (const std::exception& error) {
    uniattn::log::error(uniattn::last_words(error));
    return 1;
  }
}
