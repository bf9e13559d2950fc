// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/prompt_tokenizer.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "executor/utf8.h"
#include "triton/field_reader.h"
#include "triton/process_factory.h"
#include "worker_link/bounded_json.h"

namespace slipstream::triton {
namespace {

constexpr char kStop[] = "stop";
constexpr char kBad[] = "bad";
constexpr char kBias[] = "bias";

// Words of a list, which must be text.
std::vector<std::string> ReadWords(FieldReader* in, const char* name) {
  std::vector<std::string> words = in->StringRow(name);
  for (size_t i = 0; i < words.size(); ++i) {
    if (IsValidUtf8(words[i])) continue;
    in->Fail(Status::InvalidArgument(std::string(name) + ": entry " + std::to_string(i) +
                                     " is not valid UTF-8"));
  }
  return words;
}

std::vector<std::string> WithoutEmpty(std::vector<std::string> words) {
  words.erase(std::remove(words.begin(), words.end(), ""), words.end());
  return words;
}

nlohmann::json ReadJson(const char* name, const std::string& text, nlohmann::json::value_t type,
                        FieldReader* in) {
  StatusOr<nlohmann::json> value = ParseJson(text);
  if (value.ok() && value->type() == type) return std::move(value).value();
  const char* must = type == nlohmann::json::value_t::array ? "array" : "object";
  in->Fail(Status::InvalidArgument(std::string(name) + ": must be a JSON " + must +
                                   (value.ok() ? "" : ", but " + value.status().message())));
  return nullptr;
}

// Either QUERY or MESSAGES.
void ReadText(FieldReader* in, TokenizerRequest* request) {
  const auto query = in->String("QUERY");
  const auto messages = in->String("MESSAGES").value_or("");
  const auto chat = in->String("CHAT_OPTIONS").value_or("");
  if (messages.empty()) {
    if (!query.has_value()) {
      in->Fail(Status::InvalidArgument(
          "QUERY (text_input): missing; give it, or a conversation in MESSAGES (messages)"));
      return;
    }
    if (!IsValidUtf8(*query)) {
      in->Fail(Status::InvalidArgument("QUERY (text_input): is not valid UTF-8"));
    }
    request->text = *query;
    if (!chat.empty()) {
      in->Fail(Status::InvalidArgument(
          "CHAT_OPTIONS (chat_options): has no meaning without MESSAGES (messages)"));
    }
    return;
  }
  if (!query.value_or("").empty()) {
    in->Fail(Status::InvalidArgument(
        "QUERY (text_input): must be empty when MESSAGES (messages) is given"));
  }
  request->messages = ReadJson("MESSAGES", messages, nlohmann::json::value_t::array, in);
  if (!chat.empty()) {
    request->chat = ReadJson("CHAT_OPTIONS", chat, nlohmann::json::value_t::object, in);
  }
}

// Words to bias; `weights` gets one per word that is not empty.
std::vector<std::string> ReadBiasWords(FieldReader* in, std::vector<float>* weights) {
  const std::vector<std::string> words = ReadWords(in, "EMBEDDING_BIAS_WORDS");
  const std::vector<float> given = in->FloatRow("EMBEDDING_BIAS_WEIGHTS");
  std::vector<std::string> result;
  if (words.size() != given.size()) {
    in->Fail(Status::InvalidArgument("EMBEDDING_BIAS_WEIGHTS: has " + std::to_string(given.size()) +
                                     " values, EMBEDDING_BIAS_WORDS (embedding_bias_words) has " +
                                     std::to_string(words.size())));
    return result;
  }
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].empty()) continue;
    result.push_back(words[i]);
    weights->push_back(given[i]);
  }
  return result;
}

// The processes take memory and seconds to start, and `preprocessing` and `ensemble` want the same
// ones. Whoever loads first starts them, who loads meanwhile waits; the last owner ends them.
StatusOr<std::shared_ptr<TokenizerPool>> SharedPool(const TokenizeParameters& parameters) {
  using Key = std::tuple<std::string, std::string, bool, std::string, int32_t>;
  static std::mutex mutex;
  static std::map<Key, std::weak_ptr<TokenizerPool>> pools;  // guarded by mutex
  const TokenizerParameters& tokenizer = parameters.tokenizer;
  const Key key = {tokenizer.tokenizer, tokenizer.revision, tokenizer.trust_remote_code,
                   tokenizer.python.executable, parameters.tokenizer_processes};
  const std::lock_guard<std::mutex> lock(mutex);
  if (auto pool = pools[key].lock()) return pool;
  auto made = MakeTokenizerPool(tokenizer, parameters.tokenizer_processes);
  if (!made.ok()) return made.status();
  std::shared_ptr<TokenizerPool> pool = std::move(made).value();
  pools[key] = pool;
  return pool;
}

}  // namespace

StatusOr<std::unique_ptr<PromptTokenizer>> PromptTokenizer::Create(
    const TokenizeParameters& parameters) {
  auto pool = SharedPool(parameters);
  if (!pool.ok()) return pool.status();
  return std::unique_ptr<PromptTokenizer>(new PromptTokenizer(parameters, std::move(pool).value()));
}

StatusOr<TextRow> PromptTokenizer::ReadRow(const RequestData& request, int64_t row) const {
  FieldReader in(request, row);
  TextRow result;
  TokenizerRequest& ask = result.ask;
  ReadText(&in, &ask);
  ask.add_special_tokens = add_special_tokens_;
  ask.allow_special = allow_special_;
  ask.words[kStop] = WithoutEmpty(ReadWords(&in, "STOP_WORDS_DICT"));
  ask.words[kBad] = WithoutEmpty(ReadWords(&in, "BAD_WORDS_DICT"));
  ask.words[kBias] = ReadBiasWords(&in, &result.bias_weights);
  in.Set("REQUEST_OUTPUT_LEN", &result.output_len);
  const TokenizerInfo& info = pool_->info();
  result.end_id = in.Int32("END_ID");
  if (!result.end_id.has_value() && info.eos_id >= 0) result.end_id = info.eos_id;
  result.pad_id = in.Int32("PAD_ID").value_or(std::max(info.pad_id, 0));
  if (!in.status().ok()) return in.status();
  return result;
}

StatusOr<TokenizedRow> PromptTokenizer::TokenizeRow(const TextRow& row) const {
  auto reply = pool_->Tokenize(row.ask);
  if (!reply.ok()) return reply.status();
  if (reply->ids.empty()) {
    return Status::InvalidArgument("QUERY (text_input): has no tokens; at least 1 is needed");
  }
  TokenizedRow result;
  result.output_len = row.output_len;
  result.end_id = row.end_id;
  result.pad_id = row.pad_id;
  result.ids = std::move(reply->ids);
  result.stop_words = std::move(reply->words[kStop]);
  result.bad_words = std::move(reply->words[kBad]);
  const auto& biased = reply->words[kBias];
  for (size_t i = 0; i < std::min(biased.size(), row.bias_weights.size()); ++i) {
    for (const int32_t id : biased[i]) {
      if (id >= 0 && id < info().vocab_size) result.bias.emplace_back(id, row.bias_weights[i]);
    }
  }
  return result;
}

StatusOr<std::vector<TextRow>> PromptTokenizer::Read(const RequestData& request) const {
  std::vector<TextRow> rows;
  for (int64_t i = 0; i < request.batch(); ++i) {
    auto row = ReadRow(request, i);
    if (!row.ok()) return row.status();
    rows.push_back(std::move(row).value());
  }
  return rows;
}

StatusOr<std::vector<TokenizedRow>> PromptTokenizer::Tokenize(
    const std::vector<TextRow>& rows) const {
  std::vector<TokenizedRow> result;
  for (const TextRow& row : rows) {
    auto tokenized = TokenizeRow(row);
    if (!tokenized.ok()) return tokenized.status();
    result.push_back(std::move(tokenized).value());
  }
  return result;
}

}  // namespace slipstream::triton
