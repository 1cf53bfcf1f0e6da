#include "adapters/module_tree.h"

#include <unordered_set>

#include "adapters/state.h"
#include "lora/nn/adapter.h"
#include "lora/nn/block_output.h"
#include "lora/nn/embedding.h"
#include "lora/nn/linear.h"
#include "lora/nn/prompt.h"

namespace lora::adapters {
namespace {

std::string join(const std::string& path, const std::string& name) { return path.empty() ? name : path + "." + name; }

bool belongs_to_adapters(const torch::nn::Module& module) {
  return dynamic_cast<const nn::Adapter*>(&module) != nullptr || dynamic_cast<const nn::BlockAdapter*>(&module) != nullptr ||
         dynamic_cast<const nn::PromptSlotImpl*>(&module) != nullptr || dynamic_cast<const Registry*>(&module) != nullptr;
}

void collect(const torch::nn::Module& parent, const std::string& path, std::unordered_set<const torch::nn::Module*>& seen,
             std::vector<NamedModule>& found) {
  for (const auto& child : parent.named_children()) {
    if (belongs_to_adapters(*child.value()) || !seen.insert(child.value().get()).second) continue;
    const std::string child_path = join(path, child.key());
    found.push_back({child_path, child.value()});
    collect(*child.value(), child_path, seen, found);
  }
}

}  // namespace

std::vector<NamedModule> base_modules(const torch::nn::Module& model) {
  std::vector<NamedModule> found;
  std::unordered_set<const torch::nn::Module*> seen;
  collect(model, "", seen, found);
  return found;
}

bool is_adaptable(const torch::nn::Module& module) {
  return dynamic_cast<const nn::LinearImpl*>(&module) != nullptr || dynamic_cast<const nn::EmbeddingImpl*>(&module) != nullptr;
}

std::vector<std::pair<std::string, at::Tensor>> base_parameters(const torch::nn::Module& model,
                                                                const std::vector<NamedModule>& modules) {
  std::vector<std::pair<std::string, at::Tensor>> found;
  const auto add = [&](const torch::nn::Module& module, const std::string& path) {
    for (const auto& parameter : module.named_parameters(/*recurse=*/false)) {
      found.emplace_back(join(path, parameter.key()), parameter.value());
    }
  };
  add(model, "");
  for (const auto& [path, module] : modules) add(*module, path);
  return found;
}

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

}  // namespace lora::adapters
