// The part of ONNX Runtime's C interface this library uses, version 18 (ONNX Runtime 1.18 and newer).
//
// The wheel of onnxruntime ships no headers, and the C ABI is append-only: a function's slot in OrtApi and a
// field's offset in OrtCustomOp never change. So the slots are declared here by number, which is all that is
// needed to run in every runtime since 1.18 without linking against one.
// native/tests/abi_test.cc compares every offset with the official header; tests/native/test_abi.py runs it where there
// is one.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define BINARIZE_ORT_CALL __stdcall
#else
#define BINARIZE_ORT_CALL
#endif

namespace binarize {
namespace ort {

struct OrtStatus;
struct OrtValue;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtCustomOp;

constexpr uint32_t kApiVersion = 18;

enum ErrorCode : int32_t { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int32_t {
  kUnknownType = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt64 = 7, kFloat16 = 10, kUint64 = 13
};
enum AttributeType : int32_t { kAttributeInt = 1, kAttributeInts = 2 };
enum Characteristic : int32_t { kRequired = 0, kOptional = 1 };
enum AllocatorType : int32_t { kArenaAllocator = 1 };
constexpr int32_t kDefaultMemory = 0;

using Slot = void*;

// Fields are named after the official functions; `gap_N_M` are the slots N..M that we do not call.
struct OrtApi {
  OrtStatus*(BINARIZE_ORT_CALL* CreateStatus)(int32_t code, const char* message);                            // 0
  Slot gap_1;
  const char*(BINARIZE_ORT_CALL* GetErrorMessage)(const OrtStatus* status);                                  // 2
  Slot gap_3_25[23];
  OrtStatus*(BINARIZE_ORT_CALL* CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** out);          // 26
  OrtStatus*(BINARIZE_ORT_CALL* CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);       // 27
  OrtStatus*(BINARIZE_ORT_CALL* AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);   // 28
  Slot gap_29_50[22];
  OrtStatus*(BINARIZE_ORT_CALL* GetTensorMutableData)(OrtValue* value, void** out);                          // 51
  Slot gap_52_56[5];
  OrtStatus*(BINARIZE_ORT_CALL* CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo** out);              // 57
  OrtStatus*(BINARIZE_ORT_CALL* SetTensorElementType)(OrtTensorTypeAndShapeInfo* info, int32_t type);        // 58
  OrtStatus*(BINARIZE_ORT_CALL* SetDimensions)(OrtTensorTypeAndShapeInfo* info, const int64_t* dims,
                                               size_t count);                                                // 59
  OrtStatus*(BINARIZE_ORT_CALL* GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, int32_t* out);  // 60
  OrtStatus*(BINARIZE_ORT_CALL* GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);     // 61
  OrtStatus*(BINARIZE_ORT_CALL* GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* dims,
                                               size_t count);                                                // 62
  OrtStatus*(BINARIZE_ORT_CALL* GetSymbolicDimensions)(const OrtTensorTypeAndShapeInfo* info,
                                                       const char** names, size_t count);                    // 63
  Slot gap_64;
  OrtStatus*(BINARIZE_ORT_CALL* GetTensorTypeAndShape)(const OrtValue* value,
                                                       OrtTensorTypeAndShapeInfo** out);                     // 65
  Slot gap_66_68[3];
  OrtStatus*(BINARIZE_ORT_CALL* CreateCpuMemoryInfo)(int32_t allocator, int32_t memory, OrtMemoryInfo** out);  // 69
  Slot gap_70_74[5];
  OrtStatus*(BINARIZE_ORT_CALL* AllocatorAlloc)(OrtAllocator* allocator, size_t bytes, void** out);          // 75
  OrtStatus*(BINARIZE_ORT_CALL* AllocatorFree)(OrtAllocator* allocator, void* memory);                       // 76
  Slot gap_77_85[9];
  OrtStatus*(BINARIZE_ORT_CALL* KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name,
                                                              int64_t* out);                                 // 86
  Slot gap_87;
  OrtStatus*(BINARIZE_ORT_CALL* KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* out);  // 88
  OrtStatus*(BINARIZE_ORT_CALL* KernelContext_GetOutputCount)(const OrtKernelContext* context, size_t* out);  // 89
  OrtStatus*(BINARIZE_ORT_CALL* KernelContext_GetInput)(const OrtKernelContext* context, size_t index,
                                                        const OrtValue** out);                               // 90
  OrtStatus*(BINARIZE_ORT_CALL* KernelContext_GetOutput)(OrtKernelContext* context, size_t index,
                                                         const int64_t* dims, size_t count, OrtValue** out);  // 91
  Slot gap_92;
  void(BINARIZE_ORT_CALL* ReleaseStatus)(OrtStatus* status);                                                 // 93
  void(BINARIZE_ORT_CALL* ReleaseMemoryInfo)(OrtMemoryInfo* info);                                           // 94
  Slot gap_95_98[4];
  void(BINARIZE_ORT_CALL* ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);                   // 99
  Slot gap_100_131[32];
  void(BINARIZE_ORT_CALL* ReleaseAllocator)(OrtAllocator* allocator);                                        // 132
  Slot gap_133_162[30];
  OrtStatus*(BINARIZE_ORT_CALL* KernelInfoGetAttributeArray_int64)(const OrtKernelInfo* info, const char* name,
                                                                   int64_t* out, size_t* size);              // 163
  Slot gap_164_229[66];
  OrtStatus*(BINARIZE_ORT_CALL* KernelInfo_GetInputCount)(const OrtKernelInfo* info, size_t* out);           // 230
  OrtStatus*(BINARIZE_ORT_CALL* KernelInfo_GetOutputCount)(const OrtKernelInfo* info, size_t* out);          // 231
  OrtStatus*(BINARIZE_ORT_CALL* KernelInfo_GetInputName)(const OrtKernelInfo* info, size_t index, char* out,
                                                         size_t* size);                                      // 232
  Slot gap_233_243[11];
  OrtStatus*(BINARIZE_ORT_CALL* KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);  // 244
  Slot gap_245_248[4];
  OrtStatus*(BINARIZE_ORT_CALL* KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index,
                                                                   int* is_constant, const OrtValue** out);  // 249
  Slot gap_250_252[3];
  OrtStatus*(BINARIZE_ORT_CALL* KernelContext_GetAllocator)(const OrtKernelContext* context,
                                                            const OrtMemoryInfo* info, OrtAllocator** out);  // 253
  Slot gap_254_266[13];
  OrtStatus*(BINARIZE_ORT_CALL* ShapeInferContext_GetInputCount)(const OrtShapeInferContext* context,
                                                                 size_t* out);                               // 267
  OrtStatus*(BINARIZE_ORT_CALL* ShapeInferContext_GetInputTypeShape)(const OrtShapeInferContext* context,
                                                                     size_t index,
                                                                     OrtTensorTypeAndShapeInfo** out);       // 268
  OrtStatus*(BINARIZE_ORT_CALL* ShapeInferContext_GetAttribute)(const OrtShapeInferContext* context,
                                                                const char* name, const OrtOpAttr** out);    // 269
  OrtStatus*(BINARIZE_ORT_CALL* ShapeInferContext_SetOutputTypeShape)(const OrtShapeInferContext* context,
                                                                      size_t index,
                                                                      const OrtTensorTypeAndShapeInfo* info);  // 270
  OrtStatus*(BINARIZE_ORT_CALL* SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, const char** names,
                                                       size_t count);                                        // 271
  OrtStatus*(BINARIZE_ORT_CALL* ReadOpAttr)(const OrtOpAttr* attribute, int32_t type, void* data, size_t bytes,
                                            size_t* out);                                                    // 272
  Slot gap_273;
  OrtStatus*(BINARIZE_ORT_CALL* KernelContext_ParallelFor)(const OrtKernelContext* context,
                                                           void (*function)(void*, size_t), size_t total,
                                                           size_t batches, void* user);                      // 274
};

struct OrtApiBase {
  const OrtApi*(BINARIZE_ORT_CALL* GetApi)(uint32_t version);
  const char*(BINARIZE_ORT_CALL* GetVersionString)();
};

struct OrtCustomOp {
  uint32_t version;
  void*(BINARIZE_ORT_CALL* CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char*(BINARIZE_ORT_CALL* GetName)(const OrtCustomOp*);
  const char*(BINARIZE_ORT_CALL* GetExecutionProviderType)(const OrtCustomOp*);
  int32_t(BINARIZE_ORT_CALL* GetInputType)(const OrtCustomOp*, size_t index);
  size_t(BINARIZE_ORT_CALL* GetInputTypeCount)(const OrtCustomOp*);
  int32_t(BINARIZE_ORT_CALL* GetOutputType)(const OrtCustomOp*, size_t index);
  size_t(BINARIZE_ORT_CALL* GetOutputTypeCount)(const OrtCustomOp*);
  void(BINARIZE_ORT_CALL* KernelCompute)(void*, OrtKernelContext*);
  void(BINARIZE_ORT_CALL* KernelDestroy)(void*);
  int32_t(BINARIZE_ORT_CALL* GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int32_t(BINARIZE_ORT_CALL* GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int32_t(BINARIZE_ORT_CALL* GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int(BINARIZE_ORT_CALL* GetVariadicInputMinArity)(const OrtCustomOp*);
  int(BINARIZE_ORT_CALL* GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int(BINARIZE_ORT_CALL* GetVariadicOutputMinArity)(const OrtCustomOp*);
  int(BINARIZE_ORT_CALL* GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus*(BINARIZE_ORT_CALL* CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus*(BINARIZE_ORT_CALL* KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus*(BINARIZE_ORT_CALL* InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int(BINARIZE_ORT_CALL* GetStartVersion)(const OrtCustomOp*);
  int(BINARIZE_ORT_CALL* GetEndVersion)(const OrtCustomOp*);
  size_t(BINARIZE_ORT_CALL* GetMayInplace)(int** input_index, int** output_index);
  void(BINARIZE_ORT_CALL* ReleaseMayInplace)(int* input_index, int* output_index);
  size_t(BINARIZE_ORT_CALL* GetAliasMap)(int** input_index, int** output_index);
  void(BINARIZE_ORT_CALL* ReleaseAliasMap)(int* input_index, int* output_index);
};

#define BINARIZE_CHECK_SLOT(field, slot) \
  static_assert(offsetof(OrtApi, field) == (slot) * sizeof(void*), "wrong OrtApi slot of " #field)
BINARIZE_CHECK_SLOT(GetErrorMessage, 2);
BINARIZE_CHECK_SLOT(CreateCustomOpDomain, 26);
BINARIZE_CHECK_SLOT(AddCustomOpDomain, 28);
BINARIZE_CHECK_SLOT(GetTensorMutableData, 51);
BINARIZE_CHECK_SLOT(CreateTensorTypeAndShapeInfo, 57);
BINARIZE_CHECK_SLOT(GetSymbolicDimensions, 63);
BINARIZE_CHECK_SLOT(GetTensorTypeAndShape, 65);
BINARIZE_CHECK_SLOT(CreateCpuMemoryInfo, 69);
BINARIZE_CHECK_SLOT(AllocatorAlloc, 75);
BINARIZE_CHECK_SLOT(KernelInfoGetAttribute_int64, 86);
BINARIZE_CHECK_SLOT(KernelContext_GetInputCount, 88);
BINARIZE_CHECK_SLOT(KernelContext_GetOutput, 91);
BINARIZE_CHECK_SLOT(ReleaseStatus, 93);
BINARIZE_CHECK_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
BINARIZE_CHECK_SLOT(ReleaseAllocator, 132);
BINARIZE_CHECK_SLOT(KernelInfoGetAttributeArray_int64, 163);
BINARIZE_CHECK_SLOT(KernelInfo_GetInputCount, 230);
BINARIZE_CHECK_SLOT(KernelInfo_GetInputName, 232);
BINARIZE_CHECK_SLOT(KernelInfo_GetNodeName, 244);
BINARIZE_CHECK_SLOT(KernelInfoGetConstantInput_tensor, 249);
BINARIZE_CHECK_SLOT(KernelContext_GetAllocator, 253);
BINARIZE_CHECK_SLOT(ShapeInferContext_GetInputCount, 267);
BINARIZE_CHECK_SLOT(ReadOpAttr, 272);
BINARIZE_CHECK_SLOT(KernelContext_ParallelFor, 274);
#undef BINARIZE_CHECK_SLOT

static_assert(sizeof(void*) == 8, "the offsets below are those of 64-bit platforms");
static_assert(offsetof(OrtCustomOp, KernelDestroy) == 72 && offsetof(OrtCustomOp, CreateKernelV2) == 136 &&
                  offsetof(OrtCustomOp, GetMayInplace) == 176 && sizeof(OrtCustomOp) == 208,
              "wrong layout of OrtCustomOp");

}  // namespace ort
}  // namespace binarize
