#pragma once

namespace lora::cli {

/// The program `lora`: all its commands, with the models, data formats, metrics and callbacks of this library and those that the
/// caller registered before (models::register_model, data::register_data_format, eval::register_metric,
/// train::register_callback). Returns the exit code; never throws for what a user can do wrong.
int run_program(int argc, char** argv);

}  // namespace lora::cli
