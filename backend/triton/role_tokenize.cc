// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/role_tokenize.h"

#include <algorithm>

#include "triton/tensor_table.h"

namespace slipstream::triton {
namespace {

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
  const auto parameters = TokenizeParameters::FromMap(config.parameters);
  if (!parameters.ok()) return parameters.status();
  LogWithoutEffect(config.name, parameters->without_effect);
  auto tokenizer = PromptTokenizer::Create(*parameters);
  if (!tokenizer.ok()) return tokenizer.status();
  return std::unique_ptr<TokenizeModel>(
      new TokenizeModel(std::move(config), *parameters, std::move(tokenizer).value()));
}

TokenizeModel::TokenizeModel(ModelConfig config, const TokenizeParameters& parameters,
                             std::unique_ptr<PromptTokenizer> tokenizer)
    : Model(std::move(config)),
      tokenizer_(std::move(tokenizer)),
      queue_(QueueOptions(
          this->config(), parameters, *tokenizer_,
          [this](TextJob* job, std::vector<TokenizedRow> rows) { return Finish(job, rows); })),
      metrics_(ReportTextQueue(this->config(), queue_)) {}

Status TokenizeModel::Handle(std::unique_ptr<ResponseStream>* stream) {
  auto data = ReadTritonRequest((*stream)->request(), config().batched);
  if (!data.ok()) return data.status();
  if (data->cancelled()) return Status::Cancelled("the request was cancelled");
  if (Status s = CheckInputs(Role::kTokenize, *data); !s.ok()) return s;
  // Optional in the table only so that Triton asks this step of an ensemble at all.
  if (data->Find("REQUEST_OUTPUT_LEN") == nullptr) {
    return Status::InvalidArgument("REQUEST_OUTPUT_LEN (max_tokens): this input is required");
  }
  auto rows = tokenizer_->Read(*data);
  if (!rows.ok()) return rows.status();
  (*stream)->MarkComputeStart();
  TextJob job;
  job.rows = std::move(rows).value();
  job.bytes = data->num_bytes();
  job.rest = std::move(data).value();
  job.arrival = static_cast<TimeNs>(MonotonicNs());
  job.stream = std::move(*stream);
  const Status status = queue_.Add(&job);
  if (!status.ok()) *stream = std::move(job.stream);
  return status;
}

Status TokenizeModel::Finish(TextJob* job, const std::vector<TokenizedRow>& rows) const {
  const int32_t vocab_size = tokenizer_->info().vocab_size;
  job->stream->Send(BuildTokenizeOutputs(*job->rest, rows, vocab_size, config().batched), true);
  return Status::Ok();
}

}  // namespace slipstream::triton
