// The program `lora`.
#include "lora/cli/program.h"

int main(int argc, char** argv) { return lora::cli::run_program(argc, argv); }
