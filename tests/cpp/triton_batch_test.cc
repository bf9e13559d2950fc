// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// Requests of several rows.

#include <doctest/doctest.h>

#include <string>
#include <utility>

#include "triton/request_reader.h"
#include "triton_fixture.h"

namespace slipstream::triton {
namespace {

StatusOr<LlmRequest> Read(RequestBuilder builder) {
  ReaderSettings settings;
  settings.num_declared_outputs = OutputRows(Role::kLlm).size();
  settings.vocab_size = 8;
  return ReadLlmRequest(builder.Build(), settings, 0);
}

RequestBuilder TwoRows() {
  RequestBuilder batch;
  batch.Add<int32_t>("input_ids", {2, 1}, {1, 1}).Add<int32_t>("input_lengths", {2, 1}, {1, 1});
  batch.Add<int32_t>("request_output_len", {2, 1}, {4, 4}).AllOutputs(Role::kLlm);
  return batch;
}

TEST_CASE("batch: what holds for it as a whole must be the same in all rows") {
  for (const char* name :
       {"stop", "streaming", "exclude_input_in_output", "return_text", "skip_special_tokens",
        "return_log_probs", "return_context_logits", "return_generation_logits",
        "return_perf_metrics", "return_kv_cache_reuse_stats", "return_num_input_tokens",
        "return_num_output_tokens", "return_finish_reason", "return_usage"}) {
    CAPTURE(name);
    const auto with = [&](bool first, bool second) {
      RequestBuilder batch = TwoRows();
      batch.Add({name, TRITONSERVER_TYPE_BOOL, {2, 1}, std::string({first, second})});
      return std::move(batch.Id("a"));
    };
    CHECK(Read(with(true, true)).ok());
    CHECK(Read(with(false, false)).ok());
    const Status refused = Read(with(true, false)).status();
    CHECK(refused.code() == StatusCode::kInvalidArgument);
    CHECK(refused.message() ==
          std::string(name) +
              ": true in row 0, false in row 1; must be the same in all rows of a request");
    CHECK(Read(with(false, true)).status().message() ==
          std::string(name) +
              ": false in row 0, true in row 1; must be the same in all rows of a request");
  }
}

TEST_CASE("batch: every row has its own number of samples and of alternatives") {
  RequestBuilder batch = TwoRows();
  batch.Add<int32_t>("num_return_sequences", {2, 1}, {1, 3});
  batch.Add<int32_t>("num_logprobs", {2, 1}, {0, 2});
  const auto request = Read(std::move(batch));
  REQUIRE(request.ok());
  CHECK(request->rows[0].num_return_sequences == 1);
  CHECK(request->rows[1].num_return_sequences == 3);
  CHECK(request->plan.sequence_index);
  CHECK(request->rows[0].num_logprobs == -1);
  CHECK(request->rows[1].num_logprobs == 2);
  CHECK(request->plan.top_log_probs);
  CHECK(request->plan.top_log_prob_ids);
}

}  // namespace
}  // namespace slipstream::triton
