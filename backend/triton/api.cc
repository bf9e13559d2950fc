// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// The functions that Triton calls, and nothing else: parse, hand over, convert errors.

#include <memory>
#include <string>

#include "triton/error.h"
#include "triton/model.h"

using slipstream::Status;
using slipstream::triton::FromTritonError;
using slipstream::triton::Guarded;
using slipstream::triton::Model;
using slipstream::triton::ModelConfig;

namespace {

Status ModelOf(TRITONBACKEND_ModelInstance* instance, Model** model) {
  TRITONBACKEND_Model* owner = nullptr;
  if (Status s = FromTritonError(TRITONBACKEND_ModelInstanceModel(instance, &owner)); !s.ok()) {
    return s;
  }
  void* state = nullptr;
  if (Status s = FromTritonError(TRITONBACKEND_ModelState(owner, &state)); !s.ok()) return s;
  *model = static_cast<Model*>(state);
  return Status::Ok();
}

}  // namespace

extern "C" {

// Once, before any model is loaded.
TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  return Guarded(__func__, [] {
    uint32_t major = 0;
    uint32_t minor = 0;
    if (Status s = FromTritonError(TRITONBACKEND_ApiVersion(&major, &minor)); !s.ok()) return s;
    if (major == TRITONBACKEND_API_VERSION_MAJOR && minor >= TRITONBACKEND_API_VERSION_MINOR) {
      return Status::Ok();
    }
    return Status::Unsupported(
        "this server offers backend API " + std::to_string(major) + "." + std::to_string(minor) +
        ", slipstream needs " + std::to_string(TRITONBACKEND_API_VERSION_MAJOR) + "." +
        std::to_string(TRITONBACKEND_API_VERSION_MINOR) + " or a later minor version");
  });
}

// Once, when the server ends.
TRITONSERVER_Error* TRITONBACKEND_Finalize(TRITONBACKEND_Backend*) { return nullptr; }

// Once, after Initialize: what the server puts in where a model has no instance_group, in place of
// one instance on each GPU.
TRITONSERVER_Error* TRITONBACKEND_GetBackendAttribute(TRITONBACKEND_Backend*,
                                                      TRITONBACKEND_BackendAttribute* attributes) {
  return Guarded(__func__, [attributes] {
    return FromTritonError(TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(
        attributes, TRITONSERVER_INSTANCEGROUPKIND_CPU, 1, nullptr, 0));
  });
}

// Loads one model of the repository. Models may load at the same time. The state belongs to us
// until ModelFinalize.
TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* triton_model) {
  return Guarded(__func__, [triton_model] {
    auto config = ModelConfig::Of(triton_model);
    if (!config.ok()) return config.status();
    auto model = Model::Create(std::move(config).value());
    if (!model.ok()) return model.status();
    Status status = FromTritonError(TRITONBACKEND_ModelSetState(triton_model, model->get()));
    if (status.ok()) static_cast<void>(model->release());
    return status;
  });
}

// After the last instance is gone and no request is left.
TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* triton_model) {
  return Guarded(__func__, [triton_model] {
    void* state = nullptr;
    if (Status s = FromTritonError(TRITONBACKEND_ModelState(triton_model, &state)); !s.ok()) {
      return s;
    }
    const std::unique_ptr<Model> model(static_cast<Model*>(state));
    return Status::Ok();
  });
}

// Instances are only Triton's threads: all state is the model's. They are made after the model, and
// when a loaded model's instance_group is changed.
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return Guarded(__func__, [instance] {
    Model* model = nullptr;
    if (Status s = ModelOf(instance, &model); !s.ok()) return s;
    return model->AddInstance();
  });
}
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance*) {
  return nullptr;
}

// A batch of requests on the instance's thread. Returning no error takes over all of them.
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                       TRITONBACKEND_Request** requests,
                                                       const uint32_t request_count) {
  return Guarded(__func__, [=] {
    Model* model = nullptr;
    if (Status s = ModelOf(instance, &model); !s.ok()) return s;
    model->Execute(instance, requests, request_count);
    return Status::Ok();
  });
}

// For /v2/models/…/ready, on any thread; servers up to 24.10 do not know it.
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReady(TRITONBACKEND_ModelInstance* instance) {
  return Guarded(__func__, [instance] {
    Model* model = nullptr;
    if (Status s = ModelOf(instance, &model); !s.ok()) return s;
    return model->Ready();
  });
}

}  // extern "C"
