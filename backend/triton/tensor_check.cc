// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "triton/nearest_name.h"
#include "triton/tensor_table.h"

namespace slipstream::triton {
namespace {

std::string Number(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  if (!text.empty() && text.back() == '.') text.pop_back();
  return text;
}

double ElementAsDouble(const Tensor& tensor, int64_t index) {
  switch (tensor.dtype) {
    case TRITONSERVER_TYPE_INT32:
      return CopyElements<int32_t>(tensor, index, 1)[0];
    case TRITONSERVER_TYPE_BOOL:
      return CopyElements<uint8_t>(tensor, index, 1)[0];
    default:
      return static_cast<double>(CopyElements<float>(tensor, index, 1)[0]);
  }
}

Status CheckNeutral(const TensorRow& row, const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.elements; ++i) {
    const double value = ElementAsDouble(tensor, i);
    if (value == row.neutral[0] || value == row.neutral[1]) continue;
    std::string allowed = Number(row.neutral[0]);
    if (row.neutral[1] != row.neutral[0]) allowed += " or " + Number(row.neutral[1]);
    return Status::Unsupported(std::string(row.name) + ": " + Number(value) +
                               " is not supported, must be " + allowed + " (no support for " +
                               row.feature + ")");
  }
  return Status::Ok();
}

Status CheckType(const TensorRow& row, const Tensor& tensor) {
  if (row.dtype == TRITONSERVER_TYPE_INVALID || row.dtype == tensor.dtype) return Status::Ok();
  // Older configurations declare it BOOL.
  if (tensor.dtype == TRITONSERVER_TYPE_BOOL && tensor.name == "early_stopping") {
    return Status::Ok();
  }
  return Status::InvalidArgument(tensor.name + ": has type " + DataTypeName(tensor.dtype) +
                                 ", must be " + DataTypeName(row.dtype));
}

Status CheckInput(Role role, const Tensor& tensor) {
  const TensorRow* row = FindRow(InputRows(role), tensor.name);
  if (row == nullptr) {
    return Status::InvalidArgument(tensor.name + ": role " + RoleName(role) + " has no such input");
  }
  if (row->use == Use::kControl || tensor.elements == 0) return Status::Ok();
  if (row->use == Use::kRefused) {
    return Status::Unsupported(tensor.name +
                               ": not supported, leave this input out (no support for " +
                               row->feature + ")");
  }
  if (Status status = CheckType(*row, tensor); !status.ok()) return status;
  return row->use == Use::kNeutralOnly ? CheckNeutral(*row, tensor) : Status::Ok();
}

std::vector<std::string_view> Names(const std::vector<TensorRow>& rows) {
  std::vector<std::string_view> names;
  for (const TensorRow& row : rows) names.emplace_back(row.name);
  return names;
}

Status CheckDeclared(Role role, const char* kind, const std::vector<TensorRow>& rows,
                     const std::vector<DeclaredTensor>& declared) {
  for (const DeclaredTensor& tensor : declared) {
    const TensorRow* row = FindRow(rows, tensor.name);
    if (row == nullptr) {
      return Status::InvalidArgument(std::string(kind) + " '" + tensor.name + "': role " +
                                     RoleName(role) + " has none of this name; the nearest is '" +
                                     NearestName(tensor.name, Names(rows)) + "'");
    }
    const bool older = tensor.name == "early_stopping" && tensor.dtype == "BOOL";
    if (row->dtype != TRITONSERVER_TYPE_INVALID && tensor.dtype != DataTypeName(row->dtype) &&
        !older) {
      return Status::InvalidArgument(std::string(kind) + " '" + tensor.name + "': declared TYPE_" +
                                     tensor.dtype + ", must be TYPE_" + DataTypeName(row->dtype));
    }
  }
  return Status::Ok();
}

}  // namespace

const char* RoleName(Role role) {
  switch (role) {
    case Role::kLlm:
      return "llm";
    case Role::kTokenize:
      return "tokenize";
    case Role::kDetokenize:
      return "detokenize";
    case Role::kPipeline:
      return "pipeline";
  }
  return "";
}

StatusOr<Role> ParseRole(std::string_view name) {
  for (const Role role : {Role::kLlm, Role::kTokenize, Role::kDetokenize, Role::kPipeline}) {
    if (name == RoleName(role)) return role;
  }
  return Status::InvalidArgument("parameter role: '" + std::string(name) +
                                 "' is none of llm, tokenize, detokenize, pipeline");
}

const TensorRow* FindRow(const std::vector<TensorRow>& rows, std::string_view name) {
  const auto row =
      std::find_if(rows.begin(), rows.end(), [&](const TensorRow& r) { return name == r.name; });
  return row == rows.end() ? nullptr : &*row;
}

Status CheckInputs(Role role, const RequestData& request) {
  if (Status status = CheckGiven(role, request); !status.ok()) return status;
  return CheckRequired(role, request);
}

Status CheckGiven(Role role, const RequestData& request) {
  for (const auto& tensor : request.inputs()) {
    if (Status status = CheckInput(role, *tensor); !status.ok()) return status;
  }
  return Status::Ok();
}

Status CheckRequired(Role role, const RequestData& request) {
  for (const TensorRow& row : InputRows(role)) {
    if (!row.optional && !request.Has(row.name)) {
      return Status::InvalidArgument(std::string(row.name) + ": this input is required");
    }
  }
  return Status::Ok();
}

Status CheckDeclaration(Role role, const std::vector<DeclaredTensor>& inputs,
                        const std::vector<DeclaredTensor>& outputs) {
  if (Status s = CheckDeclared(role, "input", InputRows(role), inputs); !s.ok()) return s;
  if (Status s = CheckDeclared(role, "output", OutputRows(role), outputs); !s.ok()) return s;
  for (const TensorRow& row : InputRows(role)) {
    const auto declared = std::find_if(inputs.begin(), inputs.end(),
                                       [&](const DeclaredTensor& t) { return t.name == row.name; });
    if (!row.optional && declared == inputs.end()) {
      return Status::InvalidArgument(std::string("input '") + row.name + "': role " +
                                     RoleName(role) + " needs it declared");
    }
  }
  return Status::Ok();
}

}  // namespace slipstream::triton
