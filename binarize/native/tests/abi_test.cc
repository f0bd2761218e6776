// Every slot and offset of ort/ort_abi.h against the official header. Nothing runs: it compiles or it does not.
#include <onnxruntime_c_api.h>  // of ONNX Runtime 1.18 or newer

#include <cstddef>

#include "ort/ort_abi.h"

namespace ours = binarize::ort;

#define SAME_SLOT(name) \
  static_assert(offsetof(ours::OrtApi, name) == offsetof(::OrtApi, name), "wrong slot of " #name)
SAME_SLOT(CreateStatus);
SAME_SLOT(GetErrorMessage);
SAME_SLOT(CreateCustomOpDomain);
SAME_SLOT(CustomOpDomain_Add);
SAME_SLOT(AddCustomOpDomain);
SAME_SLOT(GetTensorMutableData);
SAME_SLOT(CreateTensorTypeAndShapeInfo);
SAME_SLOT(SetTensorElementType);
SAME_SLOT(SetDimensions);
SAME_SLOT(GetTensorElementType);
SAME_SLOT(GetDimensionsCount);
SAME_SLOT(GetDimensions);
SAME_SLOT(GetSymbolicDimensions);
SAME_SLOT(GetTensorTypeAndShape);
SAME_SLOT(CreateCpuMemoryInfo);
SAME_SLOT(AllocatorAlloc);
SAME_SLOT(AllocatorFree);
SAME_SLOT(KernelInfoGetAttribute_int64);
SAME_SLOT(KernelContext_GetInputCount);
SAME_SLOT(KernelContext_GetOutputCount);
SAME_SLOT(KernelContext_GetInput);
SAME_SLOT(KernelContext_GetOutput);
SAME_SLOT(ReleaseStatus);
SAME_SLOT(ReleaseMemoryInfo);
SAME_SLOT(ReleaseTensorTypeAndShapeInfo);
SAME_SLOT(ReleaseAllocator);
SAME_SLOT(KernelInfoGetAttributeArray_int64);
SAME_SLOT(KernelInfo_GetInputCount);
SAME_SLOT(KernelInfo_GetInputName);
SAME_SLOT(KernelInfo_GetOutputCount);
SAME_SLOT(KernelInfo_GetNodeName);
SAME_SLOT(KernelInfoGetConstantInput_tensor);
SAME_SLOT(KernelContext_GetAllocator);
SAME_SLOT(ShapeInferContext_GetInputCount);
SAME_SLOT(ShapeInferContext_GetInputTypeShape);
SAME_SLOT(ShapeInferContext_GetAttribute);
SAME_SLOT(ShapeInferContext_SetOutputTypeShape);
SAME_SLOT(SetSymbolicDimensions);
SAME_SLOT(ReadOpAttr);
SAME_SLOT(KernelContext_ParallelFor);

#define SAME_FIELD(name) \
  static_assert(offsetof(ours::OrtCustomOp, name) == offsetof(::OrtCustomOp, name), "wrong offset of " #name)
SAME_FIELD(version);
SAME_FIELD(CreateKernel);
SAME_FIELD(GetName);
SAME_FIELD(GetExecutionProviderType);
SAME_FIELD(GetInputType);
SAME_FIELD(GetInputTypeCount);
SAME_FIELD(GetOutputType);
SAME_FIELD(GetOutputTypeCount);
SAME_FIELD(KernelCompute);
SAME_FIELD(KernelDestroy);
SAME_FIELD(GetInputCharacteristic);
SAME_FIELD(GetOutputCharacteristic);
SAME_FIELD(GetInputMemoryType);
SAME_FIELD(GetVariadicInputMinArity);
SAME_FIELD(GetVariadicInputHomogeneity);
SAME_FIELD(GetVariadicOutputMinArity);
SAME_FIELD(GetVariadicOutputHomogeneity);
SAME_FIELD(CreateKernelV2);
SAME_FIELD(KernelComputeV2);
SAME_FIELD(InferOutputShapeFn);
SAME_FIELD(GetStartVersion);
SAME_FIELD(GetEndVersion);
SAME_FIELD(GetMayInplace);
SAME_FIELD(ReleaseMayInplace);
SAME_FIELD(GetAliasMap);
SAME_FIELD(ReleaseAliasMap);

static_assert(static_cast<int>(ours::kFloat) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "element type");
static_assert(static_cast<int>(ours::kInt64) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, "element type");
static_assert(static_cast<int>(ours::kUint64) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64, "element type");
static_assert(static_cast<int>(ours::kAttributeInt) == ORT_OP_ATTR_INT, "attribute type");
static_assert(static_cast<int>(ours::kAttributeInts) == ORT_OP_ATTR_INTS, "attribute type");
static_assert(static_cast<int>(ours::kOptional) == INPUT_OUTPUT_OPTIONAL, "characteristic");
static_assert(static_cast<int>(ours::kFail) == ORT_FAIL, "error code");
static_assert(static_cast<int>(ours::kInvalidArgument) == ORT_INVALID_ARGUMENT, "error code");
static_assert(static_cast<int>(ours::kArenaAllocator) == OrtArenaAllocator, "allocator type");

int main() { return 0; }
