// What exists at a moment of a rehearsed run, and the most that ever did.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace lora::train {

/// What bytes are for.
enum Kind : size_t { kWeights, kPacked, kGradients, kActivations, kLogits, kKinds };

/// In bytes.
class Ledger {
 public:
  void hold(Kind kind, int64_t bytes) {
    now_[kind] += bytes;
    live_ += bytes;
    most_[kind] = std::max(most_[kind], now_[kind]);
    peak_ = std::max(peak_, live_);
  }
  void drop(Kind kind, int64_t bytes) {
    now_[kind] -= bytes;
    live_ -= bytes;
  }
  int64_t now(Kind kind) const { return now_[kind]; }
  int64_t most(Kind kind) const { return most_[kind]; }
  int64_t peak() const { return peak_; }

 private:
  std::array<int64_t, kKinds> now_ = {}, most_ = {};
  int64_t live_ = 0, peak_ = 0;
};

/// Tensors of a scope, gone at its end.
class Scope {
 public:
  explicit Scope(Ledger& ledger, Kind kind = kActivations) : ledger_(ledger), kind_(kind) {}
  Scope(Ledger& ledger, Kind kind, int64_t bytes) : Scope(ledger, kind) { hold(bytes); }
  ~Scope() { end(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  void hold(int64_t bytes) {
    ledger_.hold(kind_, bytes);
    bytes_ += bytes;
  }
  void end() {
    ledger_.drop(kind_, bytes_);
    bytes_ = 0;
  }

 private:
  Ledger& ledger_;
  Kind kind_;
  int64_t bytes_ = 0;
};

}  // namespace lora::train
