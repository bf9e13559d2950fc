// SPDX-FileCopyrightText: Slipstream contributors
// SPDX-License-Identifier: Apache-2.0
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/status_error.h"
#include "executor/detokenizer.h"
#include "executor/stop_matcher.h"
#include "executor/token_table.h"
#include "executor/word_list.h"

namespace slipstream {
namespace {

namespace py = pybind11;

using Tokens = py::array_t<int32_t, py::array::c_style>;

// pybind11 holders are not const. None of the classes bound this way has a method that changes it.
template <typename T>
std::shared_ptr<T> ForPython(StatusOr<std::shared_ptr<const T>> result) {
  return std::const_pointer_cast<T>(ValueOrThrow(std::move(result)));
}

// The conversion to str is strict, so a chunk that were not valid UTF-8 would raise.
template <typename Fill>
std::string Collect(Fill fill) {
  std::string out;
  fill(&out);
  return out;
}

void BindDetokenizer(py::module_& m) {
  py::class_<TokenTable, std::shared_ptr<TokenTable>>(
      m, "TokenTable", "What each token of one tokenizer contributes to the text.")
      .def_static(
          "from_msgpack",
          [](const py::bytes& blob) {
            return ForPython(TokenTable::FromMsgpack(std::string_view(blob)));
          },
          py::arg("blob"),
          "Reads what slipstream.tokenization.export_token_table() wrote; ValueError if "
          "malformed.")
      .def("__len__", &TokenTable::size)
      .def("flags", &TokenTable::flags, py::arg("token"),
           "Bits: 1 present, 2 special, 4 added, 8 byte of byte fallback, 64 UTF-8 by itself.");

  py::class_<Detokenizer>(m, "Detokenizer", "Turns one stream of tokens into text.")
      .def(py::init([](std::shared_ptr<TokenTable> table, bool skip_special_tokens) {
             return Detokenizer(std::move(table), skip_special_tokens);
           }),
           py::arg("table").none(false), py::arg("skip_special_tokens") = true)
      .def(
          "append",
          [](Detokenizer& self, int32_t token) {
            return Collect([&](std::string* out) { self.Append(token, out); });
          },
          py::arg("token"), "Adds a token; returns the text that is now settled.")
      .def(
          "extend",
          [](Detokenizer& self, const std::vector<int32_t>& tokens) {
            return Collect([&](std::string* out) {
              for (const int32_t token : tokens) self.Append(token, out);
            });
          },
          py::arg("tokens"), "Adds several tokens; returns the text that is now settled.")
      .def(
          "flush",
          [](Detokenizer& self) { return Collect([&](std::string* out) { self.Flush(out); }); },
          "Ends the text; returns what was waiting.")
      .def_static(
          "decode",
          [](std::shared_ptr<TokenTable> table, const std::vector<int32_t>& tokens,
             bool skip_special_tokens) {
            return Detokenizer::Decode(std::move(table), tokens.data(), tokens.size(),
                                       skip_special_tokens);
          },
          py::arg("table").none(false), py::arg("tokens"), py::arg("skip_special_tokens") = true,
          "The text of all tokens together.");
}

void BindStopMatcher(py::module_& m) {
  py::class_<StopMatch>(m, "StopMatch", "Which stop string matched which bytes of the text.")
      .def_readonly("index", &StopMatch::index)
      .def_readonly("begin", &StopMatch::begin)
      .def_readonly("end", &StopMatch::end);

  py::class_<StopStrings, std::shared_ptr<StopStrings>>(m, "StopStrings",
                                                        "The stop strings of one request.")
      .def(py::init([](std::vector<std::string> strings, bool include_in_output) {
             return ForPython(StopStrings::Create(std::move(strings), include_in_output));
           }),
           py::arg("strings"), py::arg("include_in_output") = false);

  py::class_<StopMatcher>(m, "StopMatcher", "Watches one stream of text for stop strings.")
      .def(py::init(
               [](std::shared_ptr<StopStrings> stops) { return StopMatcher(std::move(stops)); }),
           py::arg("stops").none(false))
      .def(
          "feed",
          [](StopMatcher& self, std::string_view text) {
            std::string out;
            auto match = self.Feed(text, &out);
            return std::make_pair(std::move(out), match);
          },
          py::arg("text"), "Adds text; returns (certain output, StopMatch or None).")
      .def(
          "flush",
          [](StopMatcher& self) { return Collect([&](std::string* out) { self.Flush(out); }); },
          "The text ends without a match; returns what was held back.")
      .def_property_readonly("stopped", &StopMatcher::stopped)
      .def_property_readonly("held_bytes", &StopMatcher::held_bytes);

  py::class_<TokenStopSequences, std::shared_ptr<TokenStopSequences>>(
      m, "TokenStopSequences", "The stop token sequences of one request.")
      .def(py::init([](std::vector<std::vector<int32_t>> sequences) {
             return ForPython(TokenStopSequences::Create(std::move(sequences)));
           }),
           py::arg("sequences"));

  py::class_<TokenStopMatcher>(m, "TokenStopMatcher",
                               "Watches one stream of tokens for stop sequences.")
      .def(py::init([](std::shared_ptr<TokenStopSequences> stops) {
             return TokenStopMatcher(std::move(stops));
           }),
           py::arg("stops").none(false))
      .def("feed", &TokenStopMatcher::Feed, py::arg("token"),
           "Adds a token; returns the index of the sequence that ends with it, or None.");
}

void BindWordList(py::module_& m) {
  m.def(
      "parse_word_list",
      [](const std::string& field, const Tokens& tensor) {
        return ValueOrThrow(
            ParseWordList(field, tensor.data(), static_cast<size_t>(tensor.size())));
      },
      py::arg("field"), py::arg("tensor").noconvert(),
      "Token sequences of an int32 array [2, n] in wire format; ValueError naming the field.");
  m.def(
      "encode_word_list",
      [](const WordList& words, size_t min_columns) {
        const std::vector<int32_t> flat = EncodeWordList(words, min_columns);
        Tokens tensor({py::ssize_t{2}, static_cast<py::ssize_t>(flat.size() / 2)});
        std::copy(flat.begin(), flat.end(), tensor.mutable_data());
        return tensor;
      },
      py::arg("words"), py::arg("min_columns") = 0,
      "The inverse: int32 array [2, n], with n at least min_columns.");
}

}  // namespace

void BindText(py::module_& m) {
  BindDetokenizer(m);
  BindStopMatcher(m);
  BindWordList(m);
}

}  // namespace slipstream
