// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/role_llm.h"

#include <utility>

namespace slipstream::triton {

StatusOr<std::unique_ptr<LlmModel>> LlmModel::Create(ModelConfig config) {
  const LlmLoading loading(config.name);
  auto service = LlmService::Create(config);
  if (!service.ok()) return service.status();
  return std::unique_ptr<LlmModel>(new LlmModel(std::move(config), std::move(service).value()));
}

LlmModel::~LlmModel() {
  registration_.reset();  // new requests find no model, or the next one of this name
  service_->Stop();
}

Status LlmModel::Handle(std::unique_ptr<ResponseStream>* stream) {
  const auto data = ReadTritonRequest((*stream)->request(), config().batched);
  if (!data.ok()) return data.status();
  if (data->cancelled()) return Status::Cancelled("the request was cancelled");
  auto request = ReadLlmRequest(*data, service_->reader(), static_cast<TimeNs>(MonotonicNs()));
  if (!request.ok()) return request.status();
  (*stream)->MarkComputeStart();
  service_->Serve(std::move(request).value(), data->id(), std::move(*stream));
  return Status::Ok();
}

}  // namespace slipstream::triton
