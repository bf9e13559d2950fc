// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "triton/instance_groups.h"
#include "triton/model.h"
#include "triton_host.h"

namespace slipstream::triton {
namespace {

ModelConfig Config(const std::string& groups) {
  const auto config = ModelConfig::FromJson(R"({"name": "m", "instance_group": )" + groups + "}");
  REQUIRE(config.ok());
  return *config;
}

// The worker's device, or the error.
std::string Placed(const std::string& groups, const std::string& device = "auto") {
  LlmParameters parameters;
  parameters.worker.device = device;
  const Status status = PlaceWorker(Config(groups), &parameters);
  return status.ok() ? parameters.worker.device : status.message();
}

std::string Checked(const std::string& field) {
  return CheckInstanceGroups(Config(R"([{"kind": "KIND_CPU", "count": 1, )" + field + "}]"))
      .message();
}

TEST_CASE("instance_group: the GPU it names is the worker's device") {
  const std::string second = R"([{"kind": "KIND_GPU", "count": 1, "gpus": [1]}])";
  CHECK(Placed(second) == "cuda:1");
  CHECK(Placed(second, "cuda") == "cuda:1");
  CHECK(Placed(second, "cuda:1") == "cuda:1");
  for (const char* device : {"cpu", "cuda:0", "cuda:11"}) {
    CHECK(Placed(second, device) ==
          "instance_group.gpus: [1] of KIND_GPU means cuda:1, but parameter device (or "
          "gpu_device_ids) means '" +
              std::string(device) + "'; both must mean the same, or device must be auto");
  }
}

TEST_CASE("instance_group: any other kind leaves the device to the parameter") {
  for (const char* device : {"auto", "cpu", "cuda:1"}) {
    CHECK(Placed("[]", device) == device);
    for (const char* kind : {"KIND_CPU", "KIND_MODEL", "KIND_AUTO"}) {
      CHECK(Placed(R"([{"count": 1, "kind": ")" + std::string(kind) + R"("}])", device) == device);
    }
  }
}

TEST_CASE("instance_group: an llm has one instance") {
  const std::string limit = "role llm batches all requests in one executor, the limit is 1";
  const std::string several = limit +
                              ". Where the configuration names no GPU, the server lists all: name "
                              "one, or set kind KIND_CPU and the parameter device";
  CHECK(Placed(R"([{"kind": "KIND_CPU", "count": 2}])") == "instance_group: 2 instances; " + limit);
  CHECK(Placed(R"([{"kind": "KIND_GPU", "count": 2, "gpus": [1]}])") ==
        "instance_group: 2 instances; " + limit);
  CHECK(Placed(R"([{"kind": "KIND_GPU", "count": 1, "gpus": [0]},
                   {"kind": "KIND_GPU", "count": 1, "gpus": [1]}])") ==
        "instance_group: 2 instances; " + limit);
  CHECK(Placed(R"([{"kind": "KIND_GPU", "count": 1, "gpus": [0, 1, 2]}])", "cuda:1") ==
        "instance_group.gpus: [0, 1, 2] of KIND_GPU are 3 instances; " + several);
}

TEST_CASE("instance_group: instances are counted as the server makes them") {
  CHECK(Config(R"([{"kind": "KIND_GPU", "count": 2, "gpus": ["0", 1, 5]}])").instance_count == 6);
  CHECK(Config(R"([{"kind": "KIND_CPU", "count": 3}])").instance_count == 3);
  CHECK(Config("[]").instance_count == 1);
  const auto error =
      ModelConfig::FromJson(R"({"instance_group": [{"kind": "KIND_GPU", "gpus": [4294967296]}]})")
          .status();
  CHECK(error.message() == "model configuration: gpus is 4294967296, which is no int32");
}

TEST_CASE("instance_group: a field that means nothing here is refused") {
  const std::string end = ": is not supported, must be left out";
  CHECK(Checked(R"("passive": true)") == "instance_group.passive true" + end);
  CHECK(Checked(R"("host_policy": "node_0")") == "instance_group.host_policy \"node_0\"" + end);
  CHECK(Checked(R"("rate_limiter": {"resources": [], "priority": 2})") ==
        R"(instance_group.rate_limiter {"priority":2,"resources":[]})" + end);
  CHECK(Checked(R"("secondary_devices": [{"kind": "KIND_NVDLA", "device_id": "0"}])") ==
        R"(instance_group.secondary_devices [{"device_id":"0","kind":"KIND_NVDLA"}])" + end);
  CHECK(Checked(R"("profile": ["a"])") == R"(instance_group.profile ["a"])" + end);
  // As the server writes what is not set.
  CHECK(Checked(R"("passive": false, "host_policy": "", "secondary_devices": [], "profile": [],
                   "gpus": [])")
            .empty());
  for (const char* role : {"llm", "tokenize", "detokenize", "pipeline"}) {
    ModelConfig config = Config(R"([{"kind": "KIND_CPU", "count": 1, "passive": true}])");
    config.parameters = {{"role", role}};
    CHECK(Model::Create(config).status().message() == "instance_group.passive true" + end);
  }
}

TEST_CASE("instance_group: where there is none, the server shall leave the device to the worker") {
  TRITONBACKEND_BackendAttribute attributes;
  REQUIRE(TRITONBACKEND_GetBackendAttribute(nullptr, &attributes) == nullptr);
  CHECK(attributes.preferred ==
        std::vector<TRITONSERVER_InstanceGroupKind>{TRITONSERVER_INSTANCEGROUPKIND_CPU});
}

}  // namespace
}  // namespace slipstream::triton
