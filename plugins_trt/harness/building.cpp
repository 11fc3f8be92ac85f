// What the builder asks, in its order: types, shapes, formats, configuration, workspace, tactics.
#include <cstring>
#include <functional>
#include <vector>

#include "check.h"
#include "descriptions.h"
#include "expressions.h"
#include "sections.h"

using nvinfer1::DataType;
using nvinfer1::TensorFormat;

namespace {

constexpr DataType kValueTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
constexpr const char* kValueNames[] = {"float32", "float16", "bfloat16"};

std::vector<DataType> input_types(DataType t) {
  const DataType f32 = DataType::kFLOAT;
  return {t, t, f32, t, t, f32, f32, DataType::kINT32};
}

void check_types(const Layer& layer) {
  check(layer.build->getNbOutputs() == 1, "one output");
  for (size_t i = 0; i < 3; ++i) {
    const auto types = input_types(kValueTypes[i]);
    DataType out = DataType::kBOOL;
    const int32_t status = layer.build->getOutputDataTypes(&out, 1, types.data(), kInputCount);
    check(status == 0 && out == kValueTypes[i], "y is %s where u is", kValueNames[i]);
  }
  DataType out[2];
  const auto types = input_types(DataType::kFLOAT);
  check(layer.build->getOutputDataTypes(out, 1, types.data(), 7) != 0, "types of seven inputs are refused");
  check(layer.build->getOutputDataTypes(out, 2, types.data(), 8) != 0, "two outputs are refused");
}

void check_shapes(const Layer& layer, const Subject& subject) {
  Expressions make;
  const std::vector<nvinfer1::DimsExprs> inputs = {make.shape({"batch", "positions", "1", "384"}),
                                                   make.shape({"batch", "positions", "2", "384"}),
                                                   make.shape({"2", "384", "16"}),
                                                   make.shape({"batch", "positions", "2", "16"}),
                                                   make.shape({"batch", "positions", "2", "16"}),
                                                   make.shape({"2", "384"}),
                                                   make.shape({"2", "384"}),
                                                   make.shape({"2", "steps"})};
  nvinfer1::DimsExprs y{};
  const int32_t status = layer.build->getOutputShapes(inputs.data(), kInputCount, nullptr, 0, &y, 1, make);
  const std::string text = Expressions::text(y);
  check(status == 0 && text == "(batch, positions, 384)", "y is %s", text.c_str());
  check(y.nbDims == 3 && y.d[2]->isConstant() && !y.d[0]->isConstant(),
        "its channels are a constant, its batch is not");
  for (int32_t i = 0; i < kInputCount; ++i) {
    auto wrong = inputs;
    --wrong[static_cast<size_t>(i)].nbDims;
    const bool refused = layer.build->getOutputShapes(wrong.data(), kInputCount, nullptr, 0, &y, 1, make) != 0;
    const std::string said = subject.last_error();
    const std::string start = std::string(kTensorNames[i]) + ": rank ";
    check(refused && said.compare(0, start.size(), start) == 0, "a rank too few is refused: %s", said.c_str());
  }
  check(layer.build->getOutputShapes(inputs.data(), 7, nullptr, 0, &y, 1, make) != 0, "seven shapes are refused");
}

// Depth first over every type and format of every tensor, as the builder asks: each position is asked with those before
// it set to an answer that was "yes".
void check_formats(const Layer& layer) {
  std::vector<DataType> types;
  for (int32_t i = 0; i < nvinfer1::EnumMax<DataType>(); ++i) types.push_back(static_cast<DataType>(i));
  std::vector<TensorFormat> formats;
  for (int32_t i = 0; i < nvinfer1::EnumMax<TensorFormat>(); ++i) formats.push_back(static_cast<TensorFormat>(i));
  Ranges tensors = describe_range({}, {}, {}, DataType::kFLOAT);
  std::vector<Ranges> found;
  int queries = 0;
  const std::function<void(int32_t)> ask = [&](int32_t position) {
    if (position == kTensorCount) return found.push_back(tensors);
    for (const DataType type : types) {
      for (const TensorFormat format : formats) {
        tensors[static_cast<size_t>(position)].desc.type = type;
        tensors[static_cast<size_t>(position)].desc.format = format;
        ++queries;
        if (layer.build->supportsFormatCombination(position, tensors.data(), kInputCount, 1)) ask(position + 1);
      }
    }
  };
  ask(0);
  check(found.size() == 3 && layer.build->getFormatCombinationLimit() >= 3, "%zu format combinations in %d queries",
        found.size(), queries);
  for (size_t i = 0; i < 3 && found.size() == 3; ++i) {
    bool exact = true;
    auto wanted = input_types(kValueTypes[i]);
    wanted.push_back(kValueTypes[i]);
    for (size_t t = 0; t < wanted.size(); ++t) {
      exact = exact && found[i][t].desc.type == wanted[t] && found[i][t].desc.format == TensorFormat::kLINEAR;
    }
    check(exact, "(T, T, f32, T, T, f32, f32, i32) -> T with T = %s, linear", kValueNames[i]);
  }
  const Ranges good = describe_range({}, {}, {}, DataType::kFLOAT);
  check(!layer.build->supportsFormatCombination(0, good.data(), 7, 1) &&
            !layer.build->supportsFormatCombination(9, good.data(), 8, 1) &&
            !layer.build->supportsFormatCombination(-1, good.data(), 8, 1),
        "wrong counts and positions have no format");
}

void check_configuration(const Layer& layer, const Subject& subject) {
  Extents least, usual, most;
  least.B = 1;
  least.P = least.S = 1;
  most.B = 8;
  most.P = most.S = 4096;
  for (const DataType type : kValueTypes) {
    const Ranges range = describe_range(least, usual, most, type);
    check(layer.build->configurePlugin(range.data(), kInputCount, &range[8], 1) == 0,
          "a profile with ranges of batch, positions and steps is taken (type %d)", static_cast<int>(type));
    const size_t whole = layer.build->getWorkspaceSize(range.data(), kInputCount, &range[8], 1);
    const Ranges narrow = describe_range(least, usual, usual, type);
    const size_t part = layer.build->getWorkspaceSize(narrow.data(), kInputCount, &narrow[8], 1);
    Extents loose = most;
    loose.S = 2 * most.P;
    const Ranges beyond = describe_range(least, usual, loose, type);
    check(part <= whole && whole < (size_t{1} << 32) &&
              layer.build->getWorkspaceSize(beyond.data(), kInputCount, &beyond[8], 1) == whole,
          "workspace: %zu bytes up to P=12, %zu up to P=4096, as many where S alone has a looser bound", part, whole);
  }
  Ranges bad = describe_range(least, usual, most, DataType::kFLOAT);
  bad[2].opt.d[1] += 1;
  bad[2].desc.dims = bad[2].min = bad[2].max = bad[2].opt;
  check(layer.build->configurePlugin(bad.data(), kInputCount, &bad[8], 1) != 0, "an A of other channels is refused: %s",
        subject.last_error().c_str());
  check(subject.last_error().compare(0, 3, "A: ") == 0, "the message names A");
  check(layer.build->configurePlugin(bad.data(), 7, &bad[8], 1) != 0, "seven inputs are refused");

  const int32_t count = layer.build->getNbTactics();
  std::vector<int32_t> tactics(static_cast<size_t>(count), -1);
  check(count == 2 && layer.build->getValidTactics(tactics.data(), count) == 0 && tactics[0] == 1 && tactics[1] == 2,
        "two tactics: 1 (sequential) and 2 (chunked)");
  for (const int32_t tactic : {0, 1, 2}) check(layer.runtime->setTactic(tactic) == 0, "tactic %d is taken", tactic);
  check(layer.runtime->setTactic(3) != 0, "tactic 3 is refused: %s", subject.last_error().c_str());
  check(layer.runtime->setTactic(0) == 0, "back to no tactic");
  const char* with = layer.build->getTimingCacheID();
  const Layer other = make_layer(subject, 0, nvinfer1::TensorRTPhase::kBUILD);
  check(with && other.build->getTimingCacheID() && std::strcmp(with, other.build->getTimingCacheID()) != 0,
        "timing caches tell layers apart: %s", with ? with : "no id");
}

}  // namespace

void check_building(const Subject& subject) {
  const Layer layer = make_layer(subject, 1, nvinfer1::TensorRTPhase::kBUILD);
  check_types(layer);
  check_shapes(layer, subject);
  check_formats(layer);
  check_configuration(layer, subject);
}
