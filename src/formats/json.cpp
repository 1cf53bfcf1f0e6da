#include "formats/json.h"

#include <cstdint>
#include <iterator>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/check.h"

namespace lora::formats {
namespace {

/// Walks over the text and tells where it stands, which the library's handlers do not learn.
class PositionIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  PositionIterator(const char* current, size_t* position) : current_(current), position_(position) {}
  reference operator*() const { return *current_; }
  PositionIterator& operator++() {
    ++current_;
    ++*position_;
    return *this;
  }
  bool operator==(const PositionIterator& other) const { return current_ == other.current_; }
  bool operator!=(const PositionIterator& other) const { return current_ != other.current_; }

 private:
  const char* current_;
  size_t* position_;
};

/// Receives the parser's events and builds the value, within the limits.
template <class Value>
class Builder {
 public:
  Builder(std::string_view where, const JsonLimits& limits, const size_t& position)
      : where_(where), limits_(limits), position_(position) {}

  Value take_root() { return std::move(root_); }

  // NOLINTBEGIN(readability-identifier-naming): the library's names.
  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(int64_t value) { return add(value); }
  bool number_unsigned(uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t&) { return false; }  // JSON text has none
  bool start_object(size_t) { return open(Value::object()); }
  bool start_array(size_t) { return open(Value::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    Frame& frame = open_.back();
    if (!frame.keys.insert(name).second) refuse(fmt::format("the key {:?} a second time", name));
    frame.next = append(*frame.value, name);
    return true;
  }

  template <class Error>
  bool parse_error(size_t position, const std::string& token, const Error&) {
    fail<FormatError>("[{}] must be JSON in UTF-8; found {:?} at byte {}; correct the file", where_, token, position);
  }
  // NOLINTEND

 private:
  /// An array or object that is not closed yet.
  struct Frame {
    Value* value;
    Value* next = nullptr;  ///< where the value of the last key goes
    std::unordered_set<std::string> keys = {};
  };

  static Value* append(Value& object, std::string& name) {
    auto& members = object.template get_ref<typename Value::object_t&>();
    if constexpr (std::is_same_v<Value, OrderedJson>) {
      // ordered_map's own emplace looks through all keys first.
      using Members = typename Value::object_t::Container;
      return &static_cast<Members&>(members).emplace_back(std::move(name), nullptr).second;
    } else {
      return &members.emplace(std::move(name), nullptr).first->second;
    }
  }

  bool add(Value value) {
    place(std::move(value));
    return true;
  }

  bool open(Value empty) {
    if (open_.size() >= limits_.max_depth) {
      refuse(fmt::format("more than {} levels of nesting", limits_.max_depth));
    }
    open_.push_back(Frame{.value = place(std::move(empty))});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Value* place(Value value) {
    if (++count_ > limits_.max_values) {
      refuse(fmt::format("more than {} values", limits_.max_values));
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Frame& frame = open_.back();
    if (frame.value->is_array()) return &frame.value->emplace_back(std::move(value));
    *frame.next = std::move(value);
    return frame.next;
  }

  [[noreturn]] void refuse(std::string_view found) const {
    fail<FormatError>("[{}] must be plain JSON; found {} at byte {}; correct the file", where_, found, position_);
  }

  std::string_view where_;
  const JsonLimits& limits_;
  const size_t& position_;
  Value root_;
  std::vector<Frame> open_;
  size_t count_ = 0;
};

template <class Value>
Value parse(std::string_view text, std::string_view where, const JsonLimits& limits) {
  require<FormatError>(text.size() <= limits.max_bytes,
                       "[{}] must have at most {} bytes of JSON; found {}; is it the right file?", where, limits.max_bytes,
                       text.size());
  // The library takes a NUL for the end of the text.
  const size_t nul = text.find('\0');
  require<FormatError>(nul == std::string_view::npos, "[{}] must be JSON; found a NUL character at byte {}; correct the file",
                       where, nul);
  size_t position = 0;
  Builder<Value> builder(where, limits, position);
  Value::sax_parse(PositionIterator(text.data(), &position), PositionIterator(text.data() + text.size(), &position), &builder);
  return builder.take_root();
}

}  // namespace

Json parse_json(std::string_view text, std::string_view where, const JsonLimits& limits) {
  return parse<Json>(text, where, limits);
}

OrderedJson parse_ordered_json(std::string_view text, std::string_view where, const JsonLimits& limits) {
  return parse<OrderedJson>(text, where, limits);
}

}  // namespace lora::formats
