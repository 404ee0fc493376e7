/* Runs one compiled kernel on ARM without TVM's runtime, which has no wheel for 32 bits:
 *
 *     run IN.bin ... > OUT.bin          (shapes.txt: a line for each tensor, the output last)
 *
 * calls ``kernel`` with one byte array for each file and one for the output, and provides the few functions
 * that TVM's generated code needs, one thread. Of TVM 0.19, or of today's apache-tvm. */
#include <dlpack/dlpack.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <tvm/runtime/c_backend_api.h>
#if __has_include(<tvm/ffi/c_api.h>)
#include <tvm/ffi/c_api.h>
int32_t __tvm_ffi_kernel(void* self, TVMFFIAny* args, int32_t count, TVMFFIAny* result);

static int call(DLTensor* tensors, int count) {
  TVMFFIAny args[8] = {0}, result = {0};
  for (int i = 0; i < count; ++i) args[i].type_index = kTVMFFIDLTensorPtr, args[i].v_ptr = &tensors[i];
  return __tvm_ffi_kernel(NULL, args, count, &result);
}
#else
#include <tvm/runtime/c_runtime_api.h>
int32_t kernel(TVMValue* args, int* codes, int count, TVMValue* result, int* result_code, void* resource);

static int call(DLTensor* tensors, int count) {
  TVMValue args[8], result;
  int codes[8], result_code;
  for (int i = 0; i < count; ++i) args[i].v_handle = &tensors[i], codes[i] = kTVMDLTensorHandle;
  return kernel(args, codes, count, &result, &result_code, NULL);
}
#endif

static void error(const char* message) { fprintf(stderr, "error: %s\n", message); }

static void* allocate(int type, int id, uint64_t size, int code, int bits) {
  return aligned_alloc(64, (size + 63) / 64 * 64);
}

static int release(int type, int id, void* data) {
  free(data);
  return 0;
}

static int launch(FTVMParallelLambda task, void* data, int tasks) {
  TVMParallelGroupEnv alone = {NULL, 1};
  return task(0, &alone, data);
}

/* The generated code calls through these, which TVM's loader fills; a kernel has only those it needs. */
#define FILL(name, function)                      \
  do {                                            \
    extern void* name __attribute__((weak));      \
    if (&name) name = (void*)(function);          \
  } while (0)

int main(int count, char** words) {
  enum { kMost = 8 };
  static DLTensor tensors[kMost];
  static int64_t shapes[kMost][8];
  FILL(__TVMAPISetLastError, error);
  FILL(__TVMBackendAllocWorkspace, allocate);
  FILL(__TVMBackendFreeWorkspace, release);
  FILL(__TVMBackendParallelLaunch, launch);
  int last = count - 1; /* the output's place, after the inputs */
  if (last < 1 || last >= kMost) return 2;
  FILE* sizes = fopen("shapes.txt", "r"); /* type code, bits, rank, extents */
  if (!sizes) return 2;
  for (int i = 0; i <= last; ++i) {
    int code, bits, rank;
    if (fscanf(sizes, "%d %d %d", &code, &bits, &rank) != 3 || rank > 8) return 2;
    size_t bytes = bits / 8;
    for (int axis = 0; axis < rank; ++axis) {
      int extent;
      if (fscanf(sizes, "%d", &extent) != 1) return 2;
      shapes[i][axis] = extent;
      bytes *= extent;
    }
    tensors[i].data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    tensors[i].device.device_type = kDLCPU;
    tensors[i].dtype.code = code, tensors[i].dtype.bits = bits, tensors[i].dtype.lanes = 1;
    tensors[i].ndim = rank, tensors[i].shape = shapes[i];
    if (i < last) {
      FILE* file = fopen(words[i + 1], "rb");
      if (!file || fread(tensors[i].data, 1, bytes, file) != bytes) return 2;
      fclose(file);
    } else {
      if (call(tensors, last + 1)) return 1;
      fwrite(tensors[i].data, 1, bytes, stdout);
    }
  }
  return 0;
}
