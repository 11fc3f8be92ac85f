// Symbolic extents behind TensorRT's IDimensionExpr and IExprBuilder, without a builder: each expression is its text.
#ifndef EDGEMAMBA_HARNESS_EXPRESSIONS_H
#define EDGEMAMBA_HARNESS_EXPRESSIONS_H

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

class Expression final : public nvinfer1::IDimensionExpr {
 public:
  explicit Expression(std::string text) : text(std::move(text)) { mImpl = &answers_; }
  Expression(int64_t value, bool) : text(std::to_string(value)) {
    answers_.constant = true;
    answers_.value = value;
    mImpl = &answers_;
  }
  const std::string text;

 private:
  struct Answers final : nvinfer1::apiv::VDimensionExpr {
    bool isConstant() const noexcept override { return constant; }
    int64_t getConstantValue() const noexcept override { return value; }
    bool isSizeTensor() const noexcept override { return false; }
    bool constant = false;
    int64_t value = 0;
  };
  Answers answers_;
};

// Makes expressions and keeps them.
class Expressions final : public nvinfer1::IExprBuilder {
 public:
  Expressions() { mImpl = &answers_; }
  // A name ("batch") or a number ("96").
  const nvinfer1::IDimensionExpr* of(const std::string& text) {
    if (text.find_first_not_of("0123456789") == std::string::npos) return answers_.constant(std::stoll(text));
    return answers_.keep(std::make_unique<Expression>(text));
  }
  nvinfer1::DimsExprs shape(const std::vector<std::string>& extents) {
    nvinfer1::DimsExprs out{};
    for (const std::string& text : extents) out.d[out.nbDims++] = of(text);
    return out;
  }
  // "(batch, 96)".
  static std::string text(const nvinfer1::DimsExprs& shape) {
    std::string out;
    for (int32_t i = 0; i < shape.nbDims; ++i)
      out += (i ? ", " : "") + static_cast<const Expression*>(shape.d[i])->text;
    return "(" + out + ")";
  }

 private:
  struct Answers final : nvinfer1::apiv::VExprBuilder {
    const nvinfer1::IDimensionExpr* keep(std::unique_ptr<Expression> made) {
      kept.push_back(std::move(made));
      return kept.back().get();
    }
    const nvinfer1::IDimensionExpr* constant(int64_t value) noexcept override {
      return keep(std::make_unique<Expression>(value, true));
    }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) noexcept override {
      return keep(std::make_unique<Expression>("op" + std::to_string(static_cast<int>(operation)) + "(" +
                                               static_cast<const Expression&>(first).text + ", " +
                                               static_cast<const Expression&>(second).text + ")"));
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr& optimum,
                                                      const nvinfer1::IDimensionExpr&) noexcept override {
      return &optimum;
    }
    std::vector<std::unique_ptr<Expression>> kept;
  };
  Answers answers_;
};

#endif  // EDGEMAMBA_HARNESS_EXPRESSIONS_H
