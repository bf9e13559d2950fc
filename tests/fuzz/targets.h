// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "fuzz_target.h"

namespace slipstream::fuzz {

FuzzTarget WordListTarget();         // [2, n] tensors of stop and bad words
FuzzTarget ChannelTarget();          // a stream of frames, cut in any way
FuzzTarget StepResultTarget();       // RESULT frames of a worker, and the Engine they go to
FuzzTarget WorkerMapsTarget();       // its HELLO and STATS
FuzzTarget TokenizerMapsTarget();    // a tokenizer process's HELLO and REPLY
FuzzTarget TokenTableTarget();       // token tables, and texts made with them
FuzzTarget StopStringsTarget();      // stop strings, and texts cut in any way
FuzzTarget ParametersTarget();       // parameters of config.pbtxt, of every role
FuzzTarget ModelConfigTarget();      // a whole configuration, as JSON
FuzzTarget ScriptedConfigTarget();   // the configuration of a scripted worker
FuzzTarget LlmRequestTarget();       // requests to role llm, up to the Executor's own check
FuzzTarget PipelineRequestTarget();  // requests to role pipeline, and what a tokenizer makes
FuzzTarget BackendTarget();          // whole models of every role on the host double

}  // namespace slipstream::fuzz
