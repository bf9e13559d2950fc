// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include "triton/model.h"

#include <exception>

#include "triton/error.h"
#include "triton/instance_groups.h"
#include "triton/role_detokenize.h"
#include "triton/role_llm.h"
#include "triton/role_pipeline.h"
#include "triton/role_tokenize.h"
#include "triton/tensor_table.h"
#include "triton/withdrawal.h"

namespace slipstream::triton {
namespace {

template <typename RoleModel>
StatusOr<std::unique_ptr<Model>> Make(ModelConfig config) {
  auto model = RoleModel::Create(std::move(config));
  if (!model.ok()) return model.status();
  return std::unique_ptr<Model>(std::move(model).value());
}

}  // namespace

StatusOr<std::unique_ptr<Model>> Model::Create(ModelConfig config) {
  if (Status s = CheckNotWithdrawn(config); !s.ok()) return s;
  if (Status s = CheckInstanceGroups(config); !s.ok()) return s;
  const auto parameter = config.parameters.find("role");
  if (parameter == config.parameters.end()) {
    return Status::InvalidArgument(
        "parameter role: not set; it must be one of llm, tokenize, detokenize, pipeline");
  }
  const auto role = ParseRole(parameter->second);
  if (!role.ok()) return role.status();
  if (Status s = CheckDeclaration(*role, config.inputs, config.outputs); !s.ok()) return s;
  switch (*role) {
    case Role::kLlm:
      return Make<LlmModel>(std::move(config));
    case Role::kTokenize:
      return Make<TokenizeModel>(std::move(config));
    case Role::kDetokenize:
      return Make<DetokenizeModel>(std::move(config));
    case Role::kPipeline:
      return Make<PipelineModel>(std::move(config));
  }
  return Status::Internal("unknown role");
}

Status Model::AddInstance() {
  if (++instances_ <= config_.instance_count) return Status::Ok();
  return Status::Unsupported(
      "instance_group: was changed while the model is loaded; unload the model, then load it, for "
      "the change to take effect");
}

void Model::Execute(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests,
                    uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    auto stream = ResponseStream::Create(instance, requests[i]);
    if (!stream.ok()) {
      LogError("a request is lost, because of what follows");
      LogError(stream.status().message());
      continue;
    }
    ExecuteOne(std::move(stream).value());
  }
}

// Throws nothing: the others of the batch, and those that were taken over, depend on it.
void Model::ExecuteOne(std::unique_ptr<ResponseStream> stream) noexcept {
  Status status;
  try {
    status = Handle(&stream);
  } catch (const std::exception& e) {
    status = FromException("handling a request", e);
  }
  if (status.ok() || stream == nullptr) return;
  try {
    stream->SendError(status, true);
  } catch (const std::exception& e) {
    LogError(e.what());  // the stream answers when it goes
  }
}

void LogWithoutEffect(const std::string& model, const std::vector<std::string>& parameters) {
  for (const std::string& parameter : parameters) {
    LogWarning("model " + model + ": parameter without effect: " + parameter);
  }
}

}  // namespace slipstream::triton
