#pragma once

#include "adapters/peft_names.h"

namespace lora::adapters {

/// What is in a file where the parameters themselves are not: PiSSA and OLoRA as plain LoRA on the original base, the ranks of
/// AdaLoRA that are left, the rows of a tied head. Changes tensors and options of a file together.
void put_plain_form(const AdapterSet& set, MethodOptions& options, FileTensors& tensors);

}  // namespace lora::adapters
