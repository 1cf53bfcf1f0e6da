#include "lora/config/known_names.h"

namespace lora::config {

KnownNames& known_names() {
  static KnownNames names;
  return names;
}

}  // namespace lora::config
