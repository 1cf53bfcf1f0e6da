#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/path.h"
#include "lora/train/step.h"

namespace lora::train {

/// The run that a callback takes part in.
struct CallbackContext {
  Path output_dir;
  int64_t first_step = 0;   ///< steps done before, by the run that this one goes on from
  int64_t total_steps = 0;  ///< when nothing stops it
};

/// Whether a run goes on after the step that a callback has seen.
enum class AfterStep { kGoOn, kStop };

/// Called after every step, behind the held-out loss where that was measured. kStop ends the run behind this step, which is
/// saved and finished as if it were the last.
using RunCallback = std::function<AfterStep(const StepResult& result)>;
/// Makes the callback of one run. A resumed run makes it anew: what it counts begins again at `first_step`.
using MakeRunCallback = std::function<RunCallback(const CallbackContext& run)>;

/// Makes a callback known to this process, under the name that `train.callbacks` of a run file uses. Throws ConfigError for a
/// name that is taken or no word of letters, digits, - and _, and without a factory.
void register_callback(std::string name, MakeRunCallback make);

/// The callback of that name for a run; ConfigError names the nearest ones, or says that its factory made none.
RunCallback make_callback(std::string_view name, const CallbackContext& run);

/// In the order of their registration.
std::vector<std::string> callback_names();

}  // namespace lora::train
