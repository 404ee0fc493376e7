// Run the network of this folder from C++: the C interface of TVM's runtime, no header of TVM's.
//
//   g++ -std=c++17 -O2 run.cc -ldl -o run
//   ./run FOLDER INPUT.bin ...
//
// One file for each input, in the order of FOLDER/network/inputs.txt: its numbers as they lie in memory
// (numpy: array.tofile). The outputs are written beside it as output_0.bin, ... The first variant of
// FOLDER/network/variants.txt whose instructions this CPU has is taken; EASYQUANT_ISA names another. Where
// there is FOLDER/network/shapes.txt, EASYQUANT_SHAPES names one of its lines, a folder with those files.
#include <dlfcn.h>

#include "network.h"

namespace {

using namespace network;

struct Bytes { const char* data; size_t size; };
union Value { int64_t integer; void* handle; const char* text; Device device; };
enum Code { kInt = 0, kModule = 9, kText = 11, kBytes = 12, kArray = 13 };

class Runtime {
 public:
  explicit Runtime(const std::string& path) : library_(dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
    if (!library_) fail(dlerror());
    load_ = symbol<decltype(load_)>("TVMModLoadFromFile");
    member_ = symbol<decltype(member_)>("TVMModGetFunction");
    global_ = symbol<decltype(global_)>("TVMFuncGetGlobal");
    call_ = symbol<decltype(call_)>("TVMFuncCall");
    error_ = symbol<decltype(error_)>("TVMGetLastError");
  }
  void* load(const std::string& path) {
    void* made = nullptr;
    check(load_(path.c_str(), "so", &made));
    return made;
  }
  void* function(void* module, const char* name) {
    void* found = nullptr;
    check(module ? member_(module, name, 1, &found) : global_(name, &found));
    if (!found) fail(std::string("there is no function ") + name);
    return found;
  }
  Value call(void* function, std::vector<Value> values = {}, std::vector<int> codes = {}) {
    Value result{};
    int code = 0;
    check(call_(function, values.data(), codes.data(), static_cast<int>(values.size()), &result, &code));
    return result;
  }

 private:
  template <typename F>
  F symbol(const char* name) {
    void* found = dlsym(library_, name);
    if (!found) fail(std::string("no TVM runtime: it lacks ") + name);
    return reinterpret_cast<F>(found);
  }
  void check(int status) { if (status) fail(error_()); }

  void* library_;
  int (*load_)(const char*, const char*, void**);
  int (*member_)(void*, const char*, int, void**);
  int (*global_)(const char*, void**);
  int (*call_)(void*, Value*, int*, int, Value*, int*);
  const char* (*error_)();
};

Value integer(int64_t number) { Value value{}; value.integer = number; return value; }
Value handle(void* pointer) { Value value{}; value.handle = pointer; return value; }
Value text(const std::string& words) { Value value{}; value.text = words.c_str(); return value; }

void run(int argc, char** argv) {
  if (argc < 2) fail("usage: run FOLDER INPUT.bin ...");
  const std::string folder = argv[1], files = at_shapes(folder + "/network");
  const std::string chosen = files + "/" + variant(files);
  Runtime tvm(folder + "/lib/libtvm_runtime.so");
  const std::string graph = read(chosen + "/mod.json"), parameters = read(chosen + "/mod.params");
  void* code = tvm.load(chosen + "/mod.so");
  void* executor = tvm.call(tvm.function(nullptr, "tvm.graph_executor.create"),
                            {text(graph), handle(code), integer(1), integer(0)},
                            {kText, kModule, kInt, kInt}).handle;
  Bytes bytes{parameters.data(), parameters.size()};
  tvm.call(tvm.function(executor, "load_params"), {handle(&bytes)}, {kBytes});
  void* input = tvm.function(executor, "get_input");
  std::istringstream lines(read(files + "/inputs.txt"));
  int given = 2;
  for (std::string line; std::getline(lines, line); ++given) {
    const std::string name = line.substr(line.rfind(' ') + 1);  // TYPE SHAPE NAME
    if (given >= argc) fail("the file of input " + name + " is missing: " + line);
    const auto& tensor = *static_cast<Tensor*>(tvm.call(input, {text(name)}, {kText}).handle);
    const std::string array = input_file(argv[given], line, size(tensor));
    std::copy(array.begin(), array.end(), numbers(tensor));
  }
  tvm.call(tvm.function(executor, "run"));
  void* output = tvm.function(executor, "get_output");
  const int64_t count = tvm.call(tvm.function(executor, "get_num_outputs")).integer;
  for (int64_t i = 0; i < count; ++i) {
    const auto& tensor = *static_cast<Tensor*>(tvm.call(output, {integer(i)}, {kInt}).handle);
    write_output(i, tensor);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 4;
  }
  return 0;
}
