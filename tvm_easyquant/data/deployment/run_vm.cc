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
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>

#include "network.h"

namespace {

using namespace network;

// TVMFFIAny; objects begin with a head of 24 bytes
struct Value { int32_t kind; uint32_t padding; union { int64_t integer; void* handle; const char* text; }; };
struct Bytes { const char* data; size_t size; };
struct Managed { Tensor tensor; void* context; void (*deleter)(Managed*); };  // DLManagedTensor
enum Kind { kInt = 1, kBool = 2, kText = 8, kTensor = 70, kArray = 71, kModule = 73 };
constexpr size_t kHead = 24, kAlignment = 64;  // where the code takes arrays to begin
constexpr int64_t kCpu = 1, kPooled = 2;

Value integer(int64_t number) { Value value{kInt, 0, {}}; value.integer = number; return value; }
Value yes() { Value value{kBool, 0, {}}; value.integer = 1; return value; }
Value text(const char* words) { Value value{kText, 0, {}}; value.text = words; return value; }
Value object(Kind kind, void* pointer) { Value value{kind, 0, {}}; value.handle = pointer; return value; }

class Runtime {
 public:
  explicit Runtime(const std::string& folder) {
    library_ = open(folder + "/libtvm_ffi.so");
    open(folder + "/libtvm_runtime.so");
    const std::string extra = folder + "/libtvm_runtime_extra.so";  // what a few float operators call
    if (access(extra.c_str(), R_OK) == 0) open(extra);
    call_ = symbol<decltype(call_)>("TVMFFIFunctionCall");
    named_ = symbol<decltype(named_)>("TVMFFIFunctionGetGlobal");
    error_ = symbol<decltype(error_)>("TVMFFIErrorMoveFromRaised");
    tensor_ = symbol<decltype(tensor_)>("TVMFFITensorFromDLPack");
  }
  Value ask(const std::string& name, std::vector<Value> values = {}) {
    const Bytes bytes{name.data(), name.size()};
    void* found = nullptr;
    check(named_(&bytes, &found));
    if (!found) fail("this TVM has no function " + name);
    return call(found, std::move(values));
  }
  void* method(void* module, const char* name) {
    return ask("ffi.ModuleGetFunction", {object(kModule, module), text(name), yes()}).handle;
  }
  Value call(void* function, std::vector<Value> values = {}) {
    if (!function) fail("no network for the virtual machine");
    Value result{0, 0, {}};
    check(call_(function, values.data(), static_cast<int32_t>(values.size()), &result));
    return result;
  }
  // A tensor of memory that stays; words: TYPE SHAPE, of a line of inputs.txt or weights.txt.
  Value tensor(void* data, std::istream& words) {
    made_.emplace_back();
    Made& made = made_.back();
    made.managed.tensor = describe(words, &made.shape);
    made.managed.tensor.data = data;
    void* handle = nullptr;
    check(tensor_(&made.managed, kAlignment, 1, &handle));
    return object(kTensor, handle);
  }
  static Tensor describe(std::istream& words, std::vector<int64_t>* shape) {
    std::string type, sizes;
    words >> type >> sizes;
    std::istringstream list(sizes == "-" ? "" : sizes);  // "-": one number
    for (std::string one; std::getline(list, one, 'x');) shape->push_back(std::stoll(one));
    const size_t digits = type.find_first_of("0123456789");
    const auto bits = static_cast<uint8_t>(digits == std::string::npos ? 8 : std::stoi(type.substr(digits)));
    const uint8_t code = type[0] == 'u' ? 1 : type[0] == 'f' ? 2 : type[0] == 'b' ? 6 : 0;
    return {nullptr, {kCpu, 0}, static_cast<int32_t>(shape->size()), {code, bits, 1}, shape->data(), nullptr, 0};
  }

 private:
  struct Made { Managed managed{}; std::vector<int64_t> shape; };

  static void* open(const std::string& path) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (!library) fail(dlerror());
    return library;
  }
  template <typename F>
  F symbol(const char* name) {
    void* found = dlsym(library_, name);
    if (!found) fail(std::string("no TVM runtime: it lacks ") + name);
    return reinterpret_cast<F>(found);
  }
  void check(int status) {
    if (!status) return;
    void* error = nullptr;
    error_(&error);
    const auto* texts = reinterpret_cast<const Bytes*>(static_cast<char*>(error) + kHead);  // kind, message
    fail(std::string(texts[1].data, texts[1].size));
  }

  void* library_;
  std::deque<Made> made_;
  int (*call_)(void*, Value*, int32_t, Value*);
  int (*named_)(const Bytes*, void**);
  void (*error_)(void**);
  int (*tensor_)(Managed*, int32_t, int32_t, void**);
};

// A file's bytes, mapped: weights are in memory once.
char* mapped(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  if (file < 0) fail("cannot read " + path);
  const off_t count = lseek(file, 0, SEEK_END);
  void* memory = count ? mmap(nullptr, static_cast<size_t>(count), PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
  close(file);
  if (memory == MAP_FAILED) fail("cannot map " + path);
  return static_cast<char*>(memory);
}

void run(int argc, char** argv) {
  if (argc < 2) fail("usage: run FOLDER INPUT.bin ...");
  const std::string folder = argv[1], files = at_shapes(folder + "/network");
  const std::string chosen = files + "/" + variant(files);
  Runtime tvm(folder + "/lib");
  void* code = tvm.ask("ffi.ModuleLoadFromFile", {text((chosen + "/mod.so").c_str())}).handle;
  void* machine = tvm.call(tvm.method(code, "vm_load_executable")).handle;
  tvm.call(tvm.method(machine, "vm_initialization"),
           {integer(kCpu), integer(0), integer(kPooled), integer(kCpu), integer(0), integer(kPooled)});
  std::vector<Value> arguments;
  std::istringstream inputs(read(files + "/inputs.txt")), weights(read(chosen + "/weights.txt"));
  int given = 2;
  for (std::string line; std::getline(inputs, line); ++given) {
    const std::string name = line.substr(line.rfind(' ') + 1);  // TYPE SHAPE NAME
    if (given >= argc) fail("the file of input " + name + " is missing: " + line);
    std::vector<int64_t> shape;
    std::istringstream words(line), again(line);
    const size_t count = size(Runtime::describe(words, &shape));
    const std::string array = input_file(argv[given], line, count);
    auto* data = static_cast<char*>(std::aligned_alloc(kAlignment, (count + kAlignment - 1) / kAlignment * kAlignment));
    std::copy(array.begin(), array.end(), data);
    arguments.push_back(tvm.tensor(data, again));
  }
  char* memory = mapped(chosen + "/mod.params");
  for (std::string line; std::getline(weights, line);) {  // TYPE SHAPE OFFSET
    std::istringstream words(line);
    arguments.push_back(tvm.tensor(memory + std::stoull(line.substr(line.rfind(' ') + 1)), words));
  }
  const Value made = tvm.call(tvm.method(machine, "main"), std::move(arguments));
  const int64_t count = made.kind == kTensor ? 1 : tvm.ask("ffi.ArraySize", {made}).integer;
  for (int64_t i = 0; i < count; ++i) {
    const Value one = made.kind == kTensor ? made : tvm.ask("ffi.ArrayGetItem", {made, integer(i)});
    write_output(i, *reinterpret_cast<Tensor*>(static_cast<char*>(one.handle) + kHead));
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
