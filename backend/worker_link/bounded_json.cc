// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "worker_link/bounded_json.h"

#include <nlohmann/json.hpp>
#include <string>

namespace slipstream {
namespace {

using nlohmann::json;

// Builds the value like the library's own reader, and stops at the level that is one too deep.
class BoundedReader : public nlohmann::detail::json_sax_dom_parser<json> {
 public:
  explicit BoundedReader(json* root) : json_sax_dom_parser(*root, /*allow_exceptions=*/false) {}

  bool start_object(std::size_t size) { return Enter() && json_sax_dom_parser::start_object(size); }
  bool start_array(std::size_t size) { return Enter() && json_sax_dom_parser::start_array(size); }
  bool end_object() {
    --depth_;
    return json_sax_dom_parser::end_object();
  }
  bool end_array() {
    --depth_;
    return json_sax_dom_parser::end_array();
  }

  bool too_deep() const { return depth_ > kMaxJsonDepth; }

 private:
  bool Enter() { return ++depth_ <= kMaxJsonDepth; }

  int depth_ = 0;
};

template <typename Iterator>
StatusOr<json> Parse(Iterator begin, Iterator end, nlohmann::detail::input_format_t format) {
  json value;
  BoundedReader reader(&value);
  if (json::sax_parse(begin, end, &reader, format)) return value;
  if (reader.too_deep()) {
    return Status::InvalidArgument("is nested deeper than " + std::to_string(kMaxJsonDepth) +
                                   " levels");
  }
  const bool is_text = format == nlohmann::detail::input_format_t::json;
  return Status::InvalidArgument(is_text ? "is not JSON" : "is not msgpack");
}

}  // namespace

StatusOr<json> ParseJson(std::string_view text) {
  return Parse(text.begin(), text.end(), nlohmann::detail::input_format_t::json);
}

StatusOr<json> ParseMsgpack(const uint8_t* data, size_t size) {
  return Parse(data, data + size, nlohmann::detail::input_format_t::msgpack);
}

}  // namespace slipstream
