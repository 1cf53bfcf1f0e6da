#pragma once

#include <string>

#include "lora/adapters/adapter_set.h"
#include "lora/adapters/method_config.h"
#include "lora/core/path.h"
#include "lora/io/adapter_files.h"

namespace lora {

/// Writes the adapter in PEFT's layout: adapter_config.json and adapter_model.safetensors (fp32). PiSSA and OLoRA become
/// plain LoRA of twice the rank on the original base, AdaLoRA keeps the ranks that are left, virtual tokens are written as
/// prompt_embeddings whatever network made them. Bottleneck adapters, which PEFT has not, have AdapterHub's config and names.
/// Works for attached adapters whether active or not. Throws IoError.
void save_adapter(const AdapterSet& adapters, const Path& directory);

/// Attaches the adapter of a PEFT directory. Trainable and active, as after inject. Every tensor of
/// the file must find its place and every place its tensor, in the right shape; otherwise
/// ShapeError names them. Names with or without "base_model.model." and with the adapter's name
/// left in are accepted. Throws FormatError where the config names what the model has not, NonFiniteError for NaN and infinity,
/// ConfigError for a name that is taken. options: those of the file, but for what only training reads (dropout); nothing: the
/// file's. An adapter that PEFT saved unconverted after init_lora_weights pissa or olora counts from the start that this init
/// takes from the base, as in PEFT.
AdapterSet load_adapter(torch::nn::Module& model, const Path& directory, const std::string& name = "default",
                        const std::optional<MethodOptions>& options = std::nullopt);

/// The same in values: what save_adapter writes, and load_adapter reads.
io::AdapterFiles adapter_to_files(const AdapterSet& adapters);
AdapterSet adapter_from_files(torch::nn::Module& model, const io::AdapterFiles& files, const std::string& name,
                              const std::optional<MethodOptions>& options = std::nullopt);
/// Copies tensors of a file into an adapter that is already attached; same checks.
void load_adapter_tensors(const AdapterSet& adapters, const std::map<std::string, at::Tensor>& tensors);

}  // namespace lora
