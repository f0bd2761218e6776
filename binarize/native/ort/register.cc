// The two exported functions. ONNX Runtime looks for RegisterCustomOps by that name;
// BinarizeRegisterCustomOps is the same under a name that stays unique when libraries are linked together.
#include <atomic>
#include <string>

#include "ort/custom_op.h"

#if defined(_WIN32)
#define BINARIZE_EXPORT extern "C" __declspec(dllexport)
#else
#define BINARIZE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace binarize {
namespace ort {
namespace {

std::atomic<const OrtApi*> registered_api{nullptr};

// The runtime is older than our slots: only those of version 1 may be touched.
OrtStatus* RefuseOldRuntime(const OrtApiBase* base) {
  const OrtApi* first = base->GetApi(1);
  if (first == nullptr) return nullptr;
  return Guard(*first, "ai.binarize", [&] {
    throw std::runtime_error(std::string("binarize needs onnxruntime >= 1.18, this is ") + base->GetVersionString());
  });
}

// One domain object for all sessions of the process; it is never released, because sessions keep pointers to it.
OrtCustomOpDomain* Domain(const OrtApi& api) {
  static OrtCustomOpDomain* const domain = [&api] {
    OrtCustomOpDomain* made = nullptr;
    Check(api, api.CreateCustomOpDomain(kDomain, &made));
    for (const OrtCustomOp* op : {PackOp(), PackHalfOp(), BinaryConv2dOp(), BinaryConv2dHalfOp(), ActivateOp(),
                                  ActivateHalfOp(), ActivateNarrowOp(), ActivateLinkOp(), ActivateLinkHalfOp(),
                                  ActivateLinkNarrowOp(), PlaceOp(), PlaceHalfOp(), GatherChannelsOp(),
                                  GatherChannelsHalfOp(), GateOp(), GateHalfOp(), MaxPoolOp(), MaxPoolHalfOp(),
                                  AveragePoolOp(), AveragePoolHalfOp(), Int8Conv2dOp(), Int8Conv2dHalfOp(),
                                  KernelInfoOp()}) {
      Check(api, api.CustomOpDomain_Add(made, op));
    }
    return made;
  }();
  return domain;
}

OrtStatus* Register(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) return RefuseOldRuntime(base);
  registered_api.store(api);
  return Guard(*api, "ai.binarize", [&] { Check(*api, api->AddCustomOpDomain(options, Domain(*api))); });
}

}  // namespace

const OrtApi& RegisteredApi() { return *registered_api.load(); }

}  // namespace ort
}  // namespace binarize

BINARIZE_EXPORT binarize::ort::OrtStatus* BINARIZE_ORT_CALL RegisterCustomOps(
    binarize::ort::OrtSessionOptions* options, const binarize::ort::OrtApiBase* base) {
  return binarize::ort::Register(options, base);
}

BINARIZE_EXPORT binarize::ort::OrtStatus* BINARIZE_ORT_CALL BinarizeRegisterCustomOps(
    binarize::ort::OrtSessionOptions* options, const binarize::ort::OrtApiBase* base) {
  return binarize::ort::Register(options, base);
}
