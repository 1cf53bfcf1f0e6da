#pragma once

#include <stdexcept>

namespace lora {

/// Base of every exception that this library throws on purpose. The message has the form
/// `[where] what must hold; what was found; what to do`.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A run file, command line or option is wrong. Programs exit with 2.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A file's content is malformed, truncated or lies about itself.
class FormatError : public Error {
 public:
  using Error::Error;
};

/// A row or set of training data is unusable.
class DataError : public Error {
 public:
  using Error::Error;
};

/// The operating system refused: missing file, no permission, disk full.
class IoError : public Error {
 public:
  using Error::Error;
};

/// Tensors, or an adapter and a model, do not fit together.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// Training produced values that are not finite, and the policy is to stop.
class NonFiniteError : public Error {
 public:
  using Error::Error;
};

}  // namespace lora
