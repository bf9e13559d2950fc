// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace slipstream::fuzz {

// Takes values off the front of an input. What is missing at its end reads as zeros.
class InputBytes {
 public:
  explicit InputBytes(std::string_view bytes) : bytes_(bytes) {}
  InputBytes(const uint8_t* data, size_t size)
      : bytes_(reinterpret_cast<const char*>(data), size) {}

  bool empty() const { return bytes_.empty(); }
  std::string_view rest() const { return bytes_; }

  uint8_t Byte() { return Value<uint8_t>(); }
  size_t Below(size_t bound) { return Byte() % bound; }
  template <typename T>
  T Value() {
    T value{};
    const size_t size = std::min(sizeof(T), bytes_.size());
    std::memcpy(&value, bytes_.data(), size);
    bytes_.remove_prefix(size);
    return value;
  }
  std::string Bytes(size_t count) {
    std::string taken(bytes_.substr(0, count));
    bytes_.remove_prefix(taken.size());
    return taken;
  }
  std::string Text() { return Bytes(Value<uint16_t>()); }  // its length comes first

 private:
  std::string_view bytes_;
};

// Writes what InputBytes reads.
class OutputBytes {
 public:
  template <typename T>
  OutputBytes& Value(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  OutputBytes& Byte(size_t value) { return Value(static_cast<uint8_t>(value)); }
  OutputBytes& Text(std::string_view text) {
    Value(static_cast<uint16_t>(text.size()));
    bytes_ += text;
    return *this;
  }
  OutputBytes& Raw(std::string_view bytes) {
    bytes_ += bytes;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace slipstream::fuzz
