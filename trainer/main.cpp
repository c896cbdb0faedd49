#include <CLI/CLI.hpp>
#include <cstdlib>
#include <exception>

#include "commands/commands.h"
#include "parallel/process_group.h"
#include "support/error.h"
#include "support/log.h"

int main(int argc, char** argv) {
  // oneDNN keeps compiled code for each shape of a product, half a megabyte each, and packed rows come in many lengths:
  // its default of 1,024 takes as much memory as a small model. A step needs a few dozen.
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128", /*overwrite=*/0);
  CLI::App program(
      "uniattn: post-train a language model so that neighbouring layers share one softmax attention pattern.");
  program.require_subcommand(1);
  program.set_help_all_flag("--help-all", "Help of all commands");
  uniattn::add_run(program);
  uniattn::add_prepare(program);
  uniattn::add_calibrate(program);
  uniattn::add_train(program);
  uniattn::add_export(program);
  uniattn::add_convert(program);
  uniattn::add_eval(program);
  uniattn::add_generate(program);
  uniattn::add_chat(program);
  uniattn::add_serve(program);
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
