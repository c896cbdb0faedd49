// The subcommands. Each function adds one to the program; its callback does the work.
#pragma once
#include <CLI/CLI.hpp>

namespace uniattn {

void add_run(CLI::App& program);
void add_prepare(CLI::App& program);
void add_calibrate(CLI::App& program);
void add_train(CLI::App& program);
void add_export(CLI::App& program);
void add_convert(CLI::App& program);
void add_eval(CLI::App& program);
void add_generate(CLI::App& program);
void add_chat(CLI::App& program);
void add_serve(CLI::App& program);
void add_tokenize(CLI::App& program);
void add_inspect(CLI::App& program);
void add_plan(CLI::App& program);
void add_bench(CLI::App& program);
void add_report(CLI::App& program);

}  // namespace uniattn
