// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0

// Role `detokenize` as the other roles see it.

#include <doctest/doctest.h>

#include <optional>
#include <string>

#include "triton/detokenize_registry.h"
#include "triton/request_reader.h"
#include "triton_fixture.h"
#include "triton_models.h"

namespace slipstream::triton {
namespace {

std::unique_ptr<Model> Postprocessing(const std::string& skip_special_tokens) {
  return Load(Role::kDetokenize, "postprocessing", true, nullptr,
              {{"role", "detokenize"},
               {"tokenizer", "double"},
               {"python_executable", kThisBinary},
               {"skip_special_tokens", skip_special_tokens}});
}

// Of a request for text, or else for ids alone.
StatusOr<bool> Skips(std::optional<bool> of_llm, std::optional<bool> of_request, bool text = true) {
  ReaderSettings settings;
  settings.pipeline = text;
  settings.num_declared_outputs = 9;
  settings.vocab_size = 8;
  settings.skip_special_tokens = of_llm;
  RequestBuilder builder;
  builder.Prompt({5}, 1).Outputs({"output_ids", "sequence_length", "text_output"});
  if (of_request.has_value()) builder.Bool("skip_special_tokens", *of_request);
  const auto request = ReadLlmRequest(builder.Build(), settings, 0);
  if (!request.ok()) return request.status();
  CHECK(request->plan.skip_special_tokens == request->rows[0].skip_special_tokens);
  return request->rows[0].skip_special_tokens;
}

TEST_CASE("detokenize: its parameter holds where neither the request nor the llm says more") {
  CHECK(*Skips({}, {}));
  CHECK_FALSE(*Skips(false, {}));
  const auto keeping = Postprocessing("false");
  CHECK_FALSE(*Skips({}, {}));
  CHECK(*Skips(true, {}));
  CHECK(*Skips({}, true));
  CHECK(*Skips(false, true));
  CHECK_FALSE(*Skips(true, false));
  {
    const auto reloaded = Postprocessing("true");  // the newest of a name counts
    CHECK(*Skips({}, {}));
  }
  CHECK_FALSE(*Skips({}, {}));
}

TEST_CASE("detokenize: a request cannot change how it makes the text of an llm without tokenizer") {
  const auto read = [](bool skip) {
    ReaderSettings settings;
    settings.num_declared_outputs = 9;
    settings.vocab_size = 8;
    RequestBuilder builder;
    builder.Prompt({5}, 1).Outputs({"output_ids", "sequence_length", "flow"});
    builder.Bool("skip_special_tokens", skip);
    return ReadLlmRequest(builder.Build(), settings, 0).status();
  };
  CHECK(read(true).ok());
  CHECK(read(false).code() == StatusCode::kUnsupported);
  CHECK(read(false).message().find("skip_special_tokens: this model has no tokenizer") == 0);
  const DetokenizeRegistration keeping("postprocessing", false);
  CHECK(read(false).ok());
  CHECK(read(true).code() == StatusCode::kUnsupported);
}

TEST_CASE("detokenize: models that differ leave it to the request or the llm") {
  const DetokenizeRegistration skipping("a", true);
  CHECK(*Skips({}, {}));
  const DetokenizeRegistration keeping("b", false);
  const auto refused = Skips({}, {});
  CHECK(refused.status().code() == StatusCode::kInvalidArgument);
  CHECK(refused.status().message() ==
        "skip_special_tokens: the parameter is true on model a and false on model b; give this "
        "input, or set the parameter on the model of role llm");
  CHECK_FALSE(*Skips(false, {}));
  CHECK_FALSE(*Skips({}, false));
  CHECK(Skips({}, {}, /*text=*/false).ok());
}

}  // namespace
}  // namespace slipstream::triton
