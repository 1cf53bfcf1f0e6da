#include <fmt/format.h>

#include "cli/command.h"
#include "core/check.h"

namespace lora::cli {
namespace {

/// "--a --b" of every long option of a command.
std::string long_options(const CLI::App& command) {
  std::string words;
  for (const auto* option : command.get_options()) {
    for (const auto& name : option->get_lnames()) words += "--" + name + " ";
  }
  return words;
}

/// A bash function that offers sub-commands, then the chosen one's options, else file names.
std::string bash_script(const CLI::App& program) {
  std::string commands, cases;
  for (const auto* command : program.get_subcommands([](const CLI::App*) { return true; })) {
    commands += command->get_name() + " ";
    cases += fmt::format("    {}) words=\"{}\" ;;\n", command->get_name(), long_options(*command));
  }
  return fmt::format(
      "_lora() {{\n"
      "  local current=\"${{COMP_WORDS[COMP_CWORD]}}\" words=\"\"\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then COMPREPLY=($(compgen -W \"{}\" -- \"$current\")); return; fi\n"
      "  case \"${{COMP_WORDS[1]}}\" in\n{}  esac\n"
      "  case \"$current\" in\n"
      "    -*) COMPREPLY=($(compgen -W \"$words\" -- \"$current\")) ;;\n"
      "    *) COMPREPLY=($(compgen -f -- \"$current\")) ;;\n"
      "  esac\n"
      "}}\n"
      "complete -o filenames -F _lora lora\n",
      commands, cases);
}

}  // namespace

void add_completion_command(CLI::App& program, Action& action) {
  auto* command = program.add_subcommand("completion", "Prints a completion script for bash (zsh: bashcompinit)");
  command->footer("Example: source <(lora completion)");
  command->callback([&program, &action] {
    action = [&program] {
      fmt::print("{}", bash_script(program));
      return kDone;
    };
  });
}

}  // namespace lora::cli
