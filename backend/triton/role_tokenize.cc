// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/role_tokenize.h"

#include <algorithm>
#include <string>

#include "triton/field_reader.h"
#include "triton/process_factory.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {
namespace {

constexpr char kStop[] = "stop";
constexpr char kBad[] = "bad";
constexpr char kBias[] = "bias";

std::vector<std::string> WithoutEmpty(std::vector<std::string> words) {
  words.erase(std::remove(words.begin(), words.end(), ""), words.end());
  return words;
}

nlohmann::json ParseJson(const char* name, const std::string& text, nlohmann::json::value_t type,
                         FieldReader* in) {
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.type() == type) return value;
  const char* must = type == nlohmann::json::value_t::array ? "array" : "object";
  in->Fail(Status::InvalidArgument(std::string(name) + ": must be a JSON " + must));
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
    request->text = *query;
    if (!chat.empty()) {
      in->Fail(Status::InvalidArgument("CHAT_OPTIONS: has no meaning without MESSAGES"));
    }
    return;
  }
  if (!query.value_or("").empty()) {
    in->Fail(Status::InvalidArgument("QUERY: must be empty when MESSAGES is given"));
  }
  request->messages = ParseJson("MESSAGES", messages, nlohmann::json::value_t::array, in);
  if (!chat.empty()) {
    request->chat = ParseJson("CHAT_OPTIONS", chat, nlohmann::json::value_t::object, in);
  }
}

// Words to bias; `weights` gets one per word that is not empty.
std::vector<std::string> ReadBiasWords(FieldReader* in, std::vector<float>* weights) {
  const std::vector<std::string> words = in->StringRow("EMBEDDING_BIAS_WORDS");
  const std::vector<float> given = in->FloatRow("EMBEDDING_BIAS_WEIGHTS");
  std::vector<std::string> result;
  if (words.size() != given.size()) {
    in->Fail(Status::InvalidArgument("EMBEDDING_BIAS_WEIGHTS: has " + std::to_string(given.size()) +
                                     " values, EMBEDDING_BIAS_WORDS has " +
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

class OutputList {
 public:
  OutputList(const RequestData& request, size_t rows, bool batched)
      : request_(request), rows_(static_cast<int64_t>(rows)), batched_(batched) {}

  template <typename T>
  void Add(const char* name, std::vector<int64_t> row_shape, const std::vector<T>& values) {
    if (!request_.Requested(name)) return;
    if (batched_) row_shape.insert(row_shape.begin(), rows_);
    outputs_.push_back(OutputTensor::Of(name, std::move(row_shape), values.data(), values.size()));
  }
  std::vector<OutputTensor> Take() { return std::move(outputs_); }

 private:
  const RequestData& request_;
  const int64_t rows_;
  const bool batched_;
  std::vector<OutputTensor> outputs_;
};

void AddWordLists(const char* name, const std::vector<TokenizedRow>& rows,
                  WordList TokenizedRow::* words, OutputList* out) {
  size_t columns = 0;
  for (const TokenizedRow& row : rows) {
    columns = std::max(columns, EncodeWordList(row.*words).size() / 2);
  }
  std::vector<int32_t> all;
  for (const TokenizedRow& row : rows) {
    const std::vector<int32_t> encoded = EncodeWordList(row.*words, columns);
    all.insert(all.end(), encoded.begin(), encoded.end());
  }
  out->Add(name, {2, static_cast<int64_t>(columns)}, all);
}

void AddBias(const std::vector<TokenizedRow>& rows, int32_t vocab_size, OutputList* out) {
  const bool any = std::any_of(rows.begin(), rows.end(),
                               [](const TokenizedRow& row) { return !row.bias.empty(); });
  const size_t width = any ? static_cast<size_t>(vocab_size) : 0;
  std::vector<float> bias(rows.size() * width, 0.0f);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const auto& [id, weight] : rows[i].bias)
      bias[i * width + static_cast<size_t>(id)] += weight;
  }
  out->Add("EMBEDDING_BIAS", {static_cast<int64_t>(width)}, bias);
}

template <typename Get>
std::vector<int32_t> Column(const std::vector<TokenizedRow>& rows, Get get) {
  std::vector<int32_t> values;
  for (const TokenizedRow& row : rows) values.push_back(get(row));
  return values;
}

}  // namespace

std::vector<OutputTensor> BuildTokenizeOutputs(const RequestData& request,
                                               const std::vector<TokenizedRow>& rows,
                                               int32_t vocab_size, bool batched) {
  OutputList out(request, rows.size(), batched);
  size_t width = 0;
  for (const TokenizedRow& row : rows) width = std::max(width, row.ids.size());
  std::vector<int32_t> ids;
  for (const TokenizedRow& row : rows) {
    ids.insert(ids.end(), row.ids.begin(), row.ids.end());
    ids.insert(ids.end(), width - row.ids.size(), row.pad_id);
  }
  const auto pad = [](const TokenizedRow& row) { return row.pad_id; };
  out.Add("INPUT_ID", {static_cast<int64_t>(width)}, ids);
  out.Add("REQUEST_INPUT_LEN", {1}, Column(rows, [](const TokenizedRow& row) {
            return static_cast<int32_t>(row.ids.size());
          }));
  // There is no decoder prompt: one padding token stands for it.
  out.Add("DECODER_INPUT_ID", {1}, Column(rows, pad));
  out.Add("REQUEST_DECODER_INPUT_LEN", {1}, std::vector<int32_t>(rows.size(), 1));
  AddWordLists("BAD_WORDS_IDS", rows, &TokenizedRow::bad_words, &out);
  AddWordLists("STOP_WORDS_IDS", rows, &TokenizedRow::stop_words, &out);
  AddBias(rows, vocab_size, &out);
  out.Add("REQUEST_OUTPUT_LEN", {1},
          Column(rows, [](const TokenizedRow& row) { return row.output_len; }));
  // Without an end of the tokenizer's own, the model's ends hold.
  if (std::all_of(rows.begin(), rows.end(),
                  [](const auto& row) { return row.end_id.has_value(); })) {
    out.Add("OUT_END_ID", {1}, Column(rows, [](const TokenizedRow& row) { return *row.end_id; }));
  }
  out.Add("OUT_PAD_ID", {1}, Column(rows, pad));
  return out.Take();
}

StatusOr<std::unique_ptr<TokenizeModel>> TokenizeModel::Create(ModelConfig config) {
  auto parameters = TokenizeParameters::FromMap(config.parameters);
  if (!parameters.ok()) return parameters.status();
  LogWithoutEffect(config.name, parameters->without_effect);
  auto pool = MakeTokenizerPool(parameters->tokenizer, parameters->tokenizer_processes);
  if (!pool.ok()) return pool.status();
  return std::unique_ptr<TokenizeModel>(
      new TokenizeModel(std::move(config), std::move(parameters).value(), std::move(pool).value()));
}

TokenizeModel::TokenizeModel(ModelConfig config, TokenizeParameters parameters,
                             std::unique_ptr<TokenizerPool> pool)
    : Model(std::move(config)), parameters_(std::move(parameters)), pool_(std::move(pool)) {}

StatusOr<TokenizedRow> TokenizeModel::TokenizeRow(const RequestData& request, int64_t row) {
  FieldReader in(request, row);
  TokenizerRequest ask;
  ReadText(&in, &ask);
  ask.add_special_tokens = parameters_.add_special_tokens;
  ask.allow_special = parameters_.allow_special;
  std::vector<float> weights;
  ask.words[kStop] = WithoutEmpty(in.StringRow("STOP_WORDS_DICT"));
  ask.words[kBad] = WithoutEmpty(in.StringRow("BAD_WORDS_DICT"));
  ask.words[kBias] = ReadBiasWords(&in, &weights);
  TokenizedRow result;
  in.Set("REQUEST_OUTPUT_LEN", &result.output_len);
  const TokenizerInfo& info = pool_->info();
  result.end_id = in.Int32("END_ID");
  if (!result.end_id.has_value() && info.eos_id >= 0) result.end_id = info.eos_id;
  result.pad_id = in.Int32("PAD_ID").value_or(std::max(info.pad_id, 0));
  if (!in.status().ok()) return in.status();

  auto reply = pool_->Tokenize(ask);
  if (!reply.ok()) return reply.status();
  if (reply->ids.empty()) {
    return Status::InvalidArgument("QUERY: has no tokens; at least 1 is needed");
  }
  result.ids = std::move(reply->ids);
  result.stop_words = std::move(reply->words[kStop]);
  result.bad_words = std::move(reply->words[kBad]);
  const auto& biased = reply->words[kBias];
  for (size_t i = 0; i < std::min(biased.size(), weights.size()); ++i) {
    for (const int32_t id : biased[i]) {
      if (id >= 0 && id < info.vocab_size) result.bias.emplace_back(id, weights[i]);
    }
  }
  return result;
}

Status TokenizeModel::Handle(std::unique_ptr<ResponseStream>* stream) {
  const auto data = ReadTritonRequest((*stream)->request(), config().batched);
  if (!data.ok()) return data.status();
  if (data->cancelled()) return Status::Cancelled("the request was cancelled");
  if (Status s = CheckInputs(Role::kTokenize, *data); !s.ok()) return s;
  (*stream)->MarkComputeStart();
  std::vector<TokenizedRow> rows;
  for (int64_t row = 0; row < data->batch(); ++row) {
    auto tokenized = TokenizeRow(*data, row);
    if (!tokenized.ok()) return tokenized.status();
    rows.push_back(std::move(tokenized).value());
  }
  (*stream)->Send(BuildTokenizeOutputs(*data, rows, pool_->info().vocab_size, config().batched),
                  true);
  return Status::Ok();
}

}  // namespace slipstream::triton
