// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "input_bytes.h"
#include "triton/request_data.h"
#include "triton/tensor_table.h"
#include "triton_host.h"

namespace slipstream::fuzz {

// Requests of a role as bytes. Nearly all bytes are some request, so that mutations of a valid one
// have inputs of wrong types, shapes, sizes and numbers, twice or not at all, and odd parameters.
std::string PackRequest(triton::Role role, const triton::host::RequestSpec& spec);
triton::host::RequestSpec UnpackRequest(triton::Role role, InputBytes* in);

// As the backend reads one; unbatched requests are for models without a batch dimension.
StatusOr<triton::RequestData> ReadSpec(const triton::host::RequestSpec& spec, bool batched);

// Requests that use every input which the role serves (it ends the process if one is missing),
// valid but for a few that are wrong where that takes two changes; where FLOW needs a stream's key
// they have this one in its place.
inline constexpr char kLiveFlow[] = "liveflow";
std::vector<triton::host::RequestSpec> GoodRequests(triton::Role role);

// The caller's to mend, and naming something.
void CheckRefusal(const Status& status);

}  // namespace slipstream::fuzz
