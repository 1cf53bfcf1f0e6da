#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace lora::nn {

/// Throws ConfigError for a name that is empty, holds a dot, or is taken.
void require_attachable(const std::string& name, bool is_taken);

/// What is attached to one place of a model by name (a weight, a block's output, the model's first positions): some of it
/// active, in an order, and all of it switched on or off.
template <class T>
class Attachments {
 public:
  /// Names in the order of attachment.
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& [name, attached] : attached_) found.push_back(name);
    return found;
  }
  /// Null when there is none of that name.
  std::shared_ptr<T> find(const std::string& name) const {
    for (const auto& [known, attached] : attached_) {
      if (known == name) return attached;
    }
    return nullptr;
  }

  /// What takes part in forward, in this order; names that are not attached here are skipped.
  void set_active(const std::vector<std::string>& names) {
    active_.clear();
    for (const auto& name : names) {
      const bool is_new = std::find(active_.begin(), active_.end(), name) == active_.end();
      if (find(name) && is_new) active_.push_back(name);
    }
    refresh();
  }
  const std::vector<std::string>& active() const { return active_; }
  void set_enabled(bool enabled) { enabled_ = enabled; }
  bool enabled() const { return enabled_; }

  /// What forward has to use now: enabled and active.
  const std::vector<std::shared_ptr<T>>& contributing() const { return enabled_ ? contributing_ : none_; }

  void add(const std::string& name, std::shared_ptr<T> attached) {
    require_attachable(name, find(name) != nullptr);
    attached_.emplace_back(name, std::move(attached));
  }
  void remove(const std::string& name) {
    std::erase_if(attached_, [&](const auto& entry) { return entry.first == name; });
    std::erase(active_, name);
    refresh();
  }

 private:
  void refresh() {
    contributing_.clear();
    for (const auto& name : active_) contributing_.push_back(find(name));
  }

  std::vector<std::pair<std::string, std::shared_ptr<T>>> attached_;
  std::vector<std::string> active_;
  std::vector<std::shared_ptr<T>> contributing_, none_;
  bool enabled_ = true;
};

}  // namespace lora::nn
