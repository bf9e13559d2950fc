// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/role_detokenize.h"

#include <iterator>
#include <utility>

#include "executor/detokenizer.h"
#include "triton/flow_registry.h"
#include "triton/process_factory.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {
namespace {

// Responses of one stream must come out in the order they came in. Triton keeps it only for a
// single instance, and in a dynamic batcher only on request.
Status CheckOrder(const ModelConfig& config) {
  if (config.instance_count != 1) {
    return Status::Unsupported("instance_group: " + std::to_string(config.instance_count) +
                               " instances would reorder the responses of a stream; the limit for "
                               "role detokenize is 1");
  }
  if (config.dynamic_batching && !config.preserve_ordering) {
    return Status::Unsupported(
        "dynamic_batching: without preserve_ordering the responses of a stream may be reordered; "
        "leave it out, or set preserve_ordering: true");
  }
  return Status::Ok();
}

// What the rows of a request say.
struct Rows {
  std::vector<std::shared_ptr<FlowListener>> flows;  // of the streams that are still there
  std::vector<std::string> texts;                    // one per row and beam
};

Status DecodeRow(const RequestData& request, int64_t row,
                 const std::shared_ptr<const TokenTable>& table, bool skip_special_tokens,
                 std::vector<std::string>* texts) {
  for (const char* name : {"TOKENS_BATCH", "SEQUENCE_LENGTH"}) {
    if (!request.Has(name)) {
      return Status::InvalidArgument(std::string(name) +
                                     ": this input is required, unless FLOW brings the text");
    }
  }
  const auto tokens = request.Int32Row("TOKENS_BATCH", row);
  if (!tokens.ok()) return tokens.status();
  const auto lengths = request.Int32Row("SEQUENCE_LENGTH", row);
  if (!lengths.ok()) return lengths.status();
  const size_t beams = lengths->size();
  if (beams == 0 || tokens->size() % beams != 0) {
    return Status::InvalidArgument("SEQUENCE_LENGTH: has " + std::to_string(beams) +
                                   " values for " + std::to_string(tokens->size()) +
                                   " ids in TOKENS_BATCH");
  }
  const size_t width = tokens->size() / beams;
  for (size_t beam = 0; beam < beams; ++beam) {
    const int32_t length = (*lengths)[beam];
    if (length < 0 || static_cast<size_t>(length) > width) {
      return Status::InvalidArgument("SEQUENCE_LENGTH: " + std::to_string(length) +
                                     " is outside 0 .. " + std::to_string(width));
    }
    texts->push_back(Detokenizer::Decode(table, tokens->data() + beam * width,
                                         static_cast<size_t>(length), skip_special_tokens));
  }
  return Status::Ok();
}

// FLOW is the key of a stream, then its text if it has been settled.
Status ReadRow(const RequestData& request, int64_t row,
               const std::shared_ptr<const TokenTable>& table, bool skip_special_tokens,
               Rows* rows) {
  auto flow = request.StringRow("FLOW", row);
  if (!flow.ok()) return flow.status();
  if (!flow->empty()) {
    const auto handle = ParseFlowKey(flow->front());
    if (!handle) {
      return Status::InvalidArgument("FLOW: begins with a string of " +
                                     std::to_string(flow->front().size()) +
                                     " bytes, must be the 8 bytes that role llm sent");
    }
    if (auto listener = FlowRegistry::Instance().Find(*handle)) {
      rows->flows.push_back(std::move(listener));
    }
  }
  if (flow->size() < 2) return DecodeRow(request, row, table, skip_special_tokens, &rows->texts);
  rows->texts.insert(rows->texts.end(), std::make_move_iterator(flow->begin() + 1),
                     std::make_move_iterator(flow->end()));
  return Status::Ok();
}

std::vector<OutputTensor> Outputs(const RequestData& request,
                                  const std::vector<std::string>& texts) {
  // Clients expect one flat list of all rows and beams.
  std::vector<OutputTensor> outputs = {
      OutputTensor::OfStrings("OUTPUT", {static_cast<int64_t>(texts.size())}, texts)};
  if (const Tensor* rate = request.Find("ACCEPTANCE_RATE")) {
    outputs.push_back({"ACCEPTANCE_RATE", rate->dtype, rate->shape, std::string(rate->data)});
  }
  return outputs;
}

}  // namespace

StatusOr<std::unique_ptr<DetokenizeModel>> DetokenizeModel::Create(ModelConfig config) {
  const auto parameters = DetokenizeParameters::FromMap(config.parameters);
  if (!parameters.ok()) return parameters.status();
  if (Status s = CheckOrder(config); !s.ok()) return s;
  LogWithoutEffect(config.name, parameters->without_effect);
  auto table = LoadTokenTable(parameters->tokenizer);
  if (!table.ok()) return table.status();
  return std::unique_ptr<DetokenizeModel>(new DetokenizeModel(
      std::move(config), parameters->skip_special_tokens, std::move(table).value()));
}

Status DetokenizeModel::Handle(std::unique_ptr<ResponseStream>* stream) {
  const auto data = ReadTritonRequest((*stream)->request(), config().batched);
  if (!data.ok()) return data.status();
  if (Status s = CheckInputs(Role::kDetokenize, *data); !s.ok()) return s;
  Rows rows;
  for (int64_t row = 0; row < data->batch(); ++row) {
    if (Status s = ReadRow(*data, row, table_, skip_special_tokens_, &rows); !s.ok()) return s;
  }
  // Not an error: tritonserver 2.51 never ends an ensemble one of whose steps fails while another
  // one runs, and then cannot shut down.
  if (data->cancelled()) {
    for (const auto& flow : rows.flows) flow->OnCancelled();
  }
  (*stream)->MarkComputeStart();
  (*stream)->Send(Outputs(*data, rows.texts), true);
  for (const auto& flow : rows.flows) flow->OnAcknowledged();
  return Status::Ok();
}

}  // namespace slipstream::triton
