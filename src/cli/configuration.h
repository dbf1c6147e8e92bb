// Options of a command from its flags, from the environment and from a TOML file: a flag goes over
// the environment, and the environment over the file.
//
//   Configuration configuration;
//   configuration.cover(*command);                       // adds --config and --print-config
//   app.parse(configuration.extend(arguments));          // UsageError, InputError
//   std::cout << configuration.effective();
//
// The option --max-context is `max-context` (or max_context) in the file and TAMIS_MAX_CONTEXT in
// the environment. Several values are an array in the file and have commas between them in the
// environment. A key of the file that is no option is an error; further variables are not looked
// at.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tamis::cli {

class Configuration {
 public:
  void cover(CLI::App& command);

  // The arguments (without the program's name), and those that environment and file add to them.
  // Arguments of a command that is not covered come back as they are.
  std::vector<std::string> extend(std::vector<std::string> arguments);

  bool print_wanted() const { return print_; }
  // After parsing: every option with its value and where it comes from, as a file for --config.
  std::string effective() const;
  // The same of those that are not left as they were, on one line; empty if all are.
  std::string summary() const;

 private:
  void find_given(const std::vector<std::string>& arguments);
  void add_environment(std::vector<std::string>& arguments);
  void add_file(std::vector<std::string>& arguments);

  CLI::App* command_ = nullptr;
  std::string file_;
  bool print_ = false;
  std::map<const CLI::Option*, std::string> source_;  // of those that are set
};

}  // namespace tamis::cli
