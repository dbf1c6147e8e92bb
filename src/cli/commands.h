// The subcommands of `tamis`. Each add_X declares its flags on `app` and, when the user chose it,
// leaves its body in `chosen`; main() runs the body and turns errors into exit codes.
#pragma once

#include <functional>

namespace CLI {
class App;  // CLI/CLI.hpp costs six seconds a file; only the .cpp files that need it include it
}

namespace tamis::cli {

// Returns the exit code: 0 done, 1 the input was wrong, 2 wrong usage, 3 the machine failed.
using CommandBody = std::function<int()>;

void add_bench(CLI::App& app, CommandBody& chosen);
void add_bench_op(CLI::App& bench, CommandBody& chosen);     // below `bench`
void add_bench_serve(CLI::App& bench, CommandBody& chosen);  // below `bench`
void add_info(CLI::App& app, CommandBody& chosen);
void add_chat(CLI::App& app, CommandBody& chosen);
void add_convert(CLI::App& app, CommandBody& chosen);
void add_data(CLI::App& app, CommandBody& chosen);
void add_eval(CLI::App& app, CommandBody& chosen);
void add_eval_exercises(CLI::App& eval, CommandBody& chosen);  // below `eval`
void add_eval_retrieval(CLI::App& eval, CommandBody& chosen);
void add_generate(CLI::App& app, CommandBody& chosen);
void add_plan(CLI::App& app, CommandBody& chosen);
void add_render(CLI::App& app, CommandBody& chosen);
void add_serve(CLI::App& app, CommandBody& chosen);
void add_tokenize(CLI::App& app, CommandBody& chosen);
void add_trace(CLI::App& app, CommandBody& chosen);
void add_train(CLI::App& app, CommandBody& chosen);
void add_verify(CLI::App& app, CommandBody& chosen);

}  // namespace tamis::cli
