// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "executor/token_table.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "executor/utf8.h"

namespace slipstream {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxTokens = int64_t{1} << 24;
constexpr int64_t kMaxDataBytes = int64_t{1} << 30;
constexpr int64_t kMaxStrip = 1 << 16;

struct Blob {
  std::map<std::string, std::string> strings;
  std::map<std::string, std::string> binaries;
  std::map<std::string, int64_t> integers;
  std::map<std::string, bool> booleans;
};

// Collects a flat msgpack map. Reading event by event, and refusing anything nested, keeps a
// hostile blob from exhausting the stack or claiming memory that it does not bring along.
class FlatMapHandler final : public nlohmann::json_sax<Json> {
 public:
  Blob blob;
  std::string error;

  bool start_object(std::size_t) override {
    if (depth_++ == 0) return true;
    return Fail("nested map");
  }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return Fail("array"); }
  bool end_array() override { return true; }
  bool key(string_t& name) override {
    if (!seen_.emplace(name, true).second) return Fail("repeated key '" + name + "'");
    key_ = name;
    return true;
  }
  bool null() override { return Fail("null"); }
  bool boolean(bool value) override { return Store(&blob.booleans, value); }
  bool number_integer(number_integer_t value) override { return Store(&blob.integers, value); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(INT64_MAX)) return Fail("integer above 2^63-1");
    return Store(&blob.integers, static_cast<int64_t>(value));
  }
  bool number_float(number_float_t, const string_t&) override { return Fail("float"); }
  bool string(string_t& value) override { return Store(&blob.strings, std::move(value)); }
  bool binary(binary_t& value) override {
    return Store(&blob.binaries, std::string(value.begin(), value.end()));
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    return Fail("not msgpack at byte " + std::to_string(position));
  }

 private:
  template <typename T>
  bool Store(std::map<std::string, T>* into, T value) {
    if (depth_ != 1) return Fail("not a map");
    into->emplace(key_, std::move(value));
    return true;
  }
  bool Fail(const std::string& what) {
    if (error.empty()) error = what + (key_.empty() ? "" : " (near '" + key_ + "')");
    return false;
  }

  int depth_ = 0;
  std::string key_;
  std::map<std::string, bool> seen_;
};

Status Bad(const std::string& what) { return Status::InvalidArgument("token table: " + what); }

uint32_t LoadLittleEndian(const char* p) {
  const auto byte = [p](int i) { return static_cast<uint32_t>(static_cast<uint8_t>(p[i])); };
  return byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
}

}  // namespace

// Takes the entries out of the blob one by one; what is left over at the end is unknown.
class TokenTableReader {
 public:
  explicit TokenTableReader(Blob blob) : blob_(std::move(blob)) {}

  Status Read(TokenTable* table) {
    for (auto step : {&TokenTableReader::ReadHeader, &TokenTableReader::ReadFlags,
                      &TokenTableReader::ReadPieces, &TokenTableReader::ReadOptions,
                      &TokenTableReader::CheckNothingLeft}) {
      if (Status status = (this->*step)(table); !status.ok()) return status;
    }
    return Status::Ok();
  }

 private:
  template <typename T>
  static bool Take(std::map<std::string, T>* from, const std::string& key, T* value) {
    const auto found = from->find(key);
    if (found == from->end()) return false;
    *value = std::move(found->second);
    from->erase(found);
    return true;
  }

  Status ReadHeader(TokenTable* table) {
    std::string format;
    int64_t version = 0;
    if (!Take(&blob_.strings, "format", &format) || format != "slipstream.token_table") {
      return Bad("format is '" + format + "', not 'slipstream.token_table'");
    }
    if (!Take(&blob_.integers, "version", &version) || version != 1) {
      return Bad("version is " + std::to_string(version) + "; this build reads version 1");
    }
    std::string joiner;
    Take(&blob_.strings, "joiner", &joiner);
    if (joiner == "concat") {
      table->joiner_ = PieceJoiner::kConcat;
    } else if (joiner == "byte_level") {
      table->joiner_ = PieceJoiner::kByteLevel;
    } else if (joiner == "byte_fallback") {
      table->joiner_ = PieceJoiner::kByteFallback;
    } else {
      return Bad("joiner is '" + joiner + "', not concat, byte_level or byte_fallback");
    }
    return Status::Ok();
  }

  Status ReadFlags(TokenTable* table) {
    int64_t count = -1;
    if (!Take(&blob_.integers, "count", &count) || count < 0 || count > kMaxTokens) {
      return Bad("count is " + std::to_string(count) + ", not within 0.." +
                 std::to_string(kMaxTokens));
    }
    std::string flags;
    Take(&blob_.binaries, "flags", &flags);
    if (flags.size() != static_cast<size_t>(count)) {
      return Bad("flags has " + std::to_string(flags.size()) + " bytes, count is " +
                 std::to_string(count));
    }
    const bool may_have_bytes = table->joiner_ == PieceJoiner::kByteFallback;
    const int known =
        kTokenPresent | kTokenSpecial | kTokenAdded | (may_have_bytes ? kTokenByte : 0);
    table->flags_.assign(flags.begin(), flags.end());
    for (size_t id = 0; id < flags.size(); ++id) {
      const uint8_t bits = table->flags_[id];
      if ((bits & ~known) != 0 || (bits != 0 && (bits & kTokenPresent) == 0)) {
        return Bad("flags[" + std::to_string(id) + "] is " + std::to_string(bits));
      }
    }
    return Status::Ok();
  }

  Status ReadPieces(TokenTable* table) {
    if (Status status = ReadPieceList("", table, &table->rest_); !status.ok()) return status;
    if (blob_.binaries.count("first_offsets") + blob_.binaries.count("first_data") > 0) {
      if (Status status = ReadPieceList("first_", table, &table->first_); !status.ok()) {
        return status;
      }
    }
    for (int32_t id = 0; id < table->size(); ++id) {
      if (IsValidUtf8(table->piece(id))) table->flags_[id] |= table->flags_[id] ? kTokenWhole : 0;
    }
    return Status::Ok();
  }

  Status ReadPieceList(const std::string& prefix, TokenTable* table, TokenTable::Pieces* pieces) {
    std::string offsets;
    if (!Take(&blob_.binaries, prefix + "offsets", &offsets) ||
        !Take(&blob_.binaries, prefix + "data", &pieces->data)) {
      return Bad(prefix + "offsets or " + prefix + "data is missing");
    }
    const size_t entries = table->flags_.size() + 1;
    if (offsets.size() != entries * 4) {
      return Bad(prefix + "offsets has " + std::to_string(offsets.size()) + " bytes, expected " +
                 std::to_string(entries * 4));
    }
    if (pieces->data.size() > static_cast<size_t>(kMaxDataBytes)) {
      return Bad(prefix + "data has more than " + std::to_string(kMaxDataBytes) + " bytes");
    }
    pieces->offsets.resize(entries);
    uint32_t previous = 0;
    for (size_t i = 0; i < entries; ++i) {
      const uint32_t offset = LoadLittleEndian(offsets.data() + 4 * i);
      if (offset < previous || offset > pieces->data.size() || (i == 0 && offset != 0)) {
        return Bad(prefix + "offsets[" + std::to_string(i) + "] is " + std::to_string(offset));
      }
      pieces->offsets[i] = previous = offset;
    }
    return CheckContents(prefix, *table, *pieces);
  }

  // Chunks of text are pieces joined, so unless a joiner repairs them they must be text themselves.
  static Status CheckContents(const std::string& prefix, const TokenTable& table,
                              const TokenTable::Pieces& pieces) {
    if (table.joiner_ == PieceJoiner::kByteLevel) return Status::Ok();
    for (int32_t id = 0; id < table.size(); ++id) {
      const bool is_byte = (table.flags_[id] & kTokenByte) != 0;
      if (is_byte ? pieces.at(id).size() != 1 : !IsValidUtf8(pieces.at(id))) {
        return Bad(prefix + "data of token " + std::to_string(id) +
                   (is_byte ? " is not one byte" : " is not UTF-8"));
      }
    }
    return Status::Ok();
  }

  Status ReadOptions(TokenTable* table) {
    int64_t count = 0;
    Take(&blob_.integers, "strip_count", &count);
    Take(&blob_.strings, "strip_content", &table->strip_content_);
    Take(&blob_.booleans, "cleanup", &table->cleanup_);
    if (count < 0 || count > kMaxStrip) {
      return Bad("strip_count is " + std::to_string(count) + ", not within 0.." +
                 std::to_string(kMaxStrip));
    }
    table->strip_count_ = static_cast<int32_t>(count);
    if (count == 0) return Status::Ok();
    const std::string& content = table->strip_content_;
    if (content.empty() || !IsValidUtf8(content) || NextUtf8(content).length != content.size()) {
      return Bad("strip_content is not one character");
    }
    return Status::Ok();
  }

  Status CheckNothingLeft(TokenTable*) {
    std::string left;
    for (const auto& [key, value] : blob_.strings) left = key;
    for (const auto& [key, value] : blob_.binaries) left = key;
    for (const auto& [key, value] : blob_.integers) left = key;
    for (const auto& [key, value] : blob_.booleans) left = key;
    return left.empty() ? Status::Ok() : Bad("unknown or mistyped entry '" + left + "'");
  }

  Blob blob_;
};

StatusOr<std::shared_ptr<const TokenTable>> TokenTable::FromMsgpack(std::string_view blob) {
  FlatMapHandler handler;
  const bool parsed = Json::sax_parse(blob.begin(), blob.end(), &handler,
                                      nlohmann::detail::input_format_t::msgpack);
  if (!parsed) return Bad(handler.error);
  std::shared_ptr<TokenTable> table(new TokenTable);  // the constructor is private
  if (Status status = TokenTableReader(std::move(handler.blob)).Read(table.get()); !status.ok()) {
    return status;
  }
  return std::shared_ptr<const TokenTable>(std::move(table));
}

}  // namespace slipstream
