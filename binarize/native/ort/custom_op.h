// Makes an OrtCustomOp out of a C++ class.
//
// The class K provides: kName, kInputs, kOutputs (arrays of Port), a constructor (api, info) that validates
// everything and throws, Compute(context) const, and a static InferShapes(api, context).
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "ort/ort_abi.h"
#include "ort/wrap.h"

namespace binarize {
namespace ort {

constexpr char kDomain[] = "ai.binarize";

struct Port {
  int32_t type;
  int32_t characteristic;
};

// The API of the runtime that registered us; shape inference functions are not handed one.
const OrtApi& RegisteredApi();

template <typename K>
struct Holder {
  Holder(const OrtApi& api, const OrtKernelInfo* info, const std::string& where)
      : api(api), where(where), kernel(api, info) {}
  const OrtApi& api;
  const std::string where;  // "ai.binarize.Pack node 'name'", for messages
  const K kernel;
};

template <typename K>
struct CustomOp {
  static OrtStatus* BINARIZE_ORT_CALL Create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                                             void** out) {
    *out = nullptr;
    std::string where;
    if (OrtStatus* status = Guard(*api, kDomain, [&] {
          where = std::string(kDomain) + "." + K::kName + " node '" + NodeName(*api, info) + "'";
        })) {
      return status;
    }
    return Guard(*api, where, [&] { *out = new Holder<K>(*api, info, where); });
  }

  static OrtStatus* BINARIZE_ORT_CALL Compute(void* kernel, OrtKernelContext* context) {
    const auto* holder = static_cast<const Holder<K>*>(kernel);
    return Guard(holder->api, holder->where, [&] { holder->kernel.Compute(context); });
  }

  static void BINARIZE_ORT_CALL Destroy(void* kernel) { delete static_cast<Holder<K>*>(kernel); }

  static OrtStatus* BINARIZE_ORT_CALL Infer(const OrtCustomOp*, OrtShapeInferContext* context) {
    const OrtApi& api = RegisteredApi();
    return Guard(api, K::kName, [&] { K::InferShapes(api, context); });
  }

  static const char* BINARIZE_ORT_CALL Name(const OrtCustomOp*) { return K::kName; }
  static const char* BINARIZE_ORT_CALL Provider(const OrtCustomOp*) { return "CPUExecutionProvider"; }
  static int32_t BINARIZE_ORT_CALL InputType(const OrtCustomOp*, size_t i) { return K::kInputs[i].type; }
  static size_t BINARIZE_ORT_CALL InputCount(const OrtCustomOp*) { return K::kInputCount; }
  static int32_t BINARIZE_ORT_CALL OutputType(const OrtCustomOp*, size_t i) { return K::kOutputs[i].type; }
  static size_t BINARIZE_ORT_CALL OutputCount(const OrtCustomOp*) { return K::kOutputCount; }
  static int32_t BINARIZE_ORT_CALL InputKind(const OrtCustomOp*, size_t i) { return K::kInputs[i].characteristic; }
  static int32_t BINARIZE_ORT_CALL OutputKind(const OrtCustomOp*, size_t i) {
    return K::kOutputs[i].characteristic;
  }
  static int32_t BINARIZE_ORT_CALL InputMemory(const OrtCustomOp*, size_t) { return kDefaultMemory; }
  static int BINARIZE_ORT_CALL One(const OrtCustomOp*) { return 1; }
  static int BINARIZE_ORT_CALL AnyVersion(const OrtCustomOp*) { return 0x7fffffff; }

  static OrtCustomOp Make() {
    OrtCustomOp op{};
    op.version = kApiVersion;
    op.GetName = Name;
    op.GetExecutionProviderType = Provider;
    op.GetInputType = InputType;
    op.GetInputTypeCount = InputCount;
    op.GetOutputType = OutputType;
    op.GetOutputTypeCount = OutputCount;
    op.KernelDestroy = Destroy;
    op.GetInputCharacteristic = InputKind;
    op.GetOutputCharacteristic = OutputKind;
    op.GetInputMemoryType = InputMemory;
    op.GetVariadicInputMinArity = One;
    op.GetVariadicInputHomogeneity = One;
    op.GetVariadicOutputMinArity = One;
    op.GetVariadicOutputHomogeneity = One;
    op.CreateKernelV2 = Create;
    op.KernelComputeV2 = Compute;
    op.InferOutputShapeFn = Infer;
    op.GetStartVersion = One;
    op.GetEndVersion = AnyVersion;
    return op;
  }
};

// `op`, whose output 0 may take the memory of one of the inputs listed, where that is a temporary.
template <int... INPUTS>
OrtCustomOp WithInPlace(OrtCustomOp op) {
  op.GetMayInplace = [](int** input_index, int** output_index) -> size_t {
    static int inputs[] = {INPUTS...};
    static int outputs[sizeof...(INPUTS)] = {};
    *input_index = inputs;
    *output_index = outputs;
    return sizeof...(INPUTS);
  };
  op.ReleaseMayInplace = [](int*, int*) {};
  return op;
}

// The operators, those with a feature stream once per element type. The objects live as long as the library: sessions
// keep pointers to them.
const OrtCustomOp* PackOp();
const OrtCustomOp* PackHalfOp();
const OrtCustomOp* BinaryConv2dOp();
const OrtCustomOp* BinaryConv2dHalfOp();
const OrtCustomOp* ActivateOp();
const OrtCustomOp* ActivateHalfOp();
const OrtCustomOp* ActivateNarrowOp();  // float32 in, float16 out
const OrtCustomOp* ActivateLinkOp();
const OrtCustomOp* ActivateLinkHalfOp();
const OrtCustomOp* ActivateLinkNarrowOp();
const OrtCustomOp* PlaceOp();
const OrtCustomOp* PlaceHalfOp();
const OrtCustomOp* GatherChannelsOp();
const OrtCustomOp* GatherChannelsHalfOp();
const OrtCustomOp* GateOp();
const OrtCustomOp* GateHalfOp();
const OrtCustomOp* MaxPoolOp();
const OrtCustomOp* MaxPoolHalfOp();
const OrtCustomOp* AveragePoolOp();
const OrtCustomOp* AveragePoolHalfOp();
const OrtCustomOp* Int8Conv2dOp();
const OrtCustomOp* Int8Conv2dHalfOp();
const OrtCustomOp* KernelInfoOp();

}  // namespace ort
}  // namespace binarize
