// What run.cc needs besides TVM's runtime: the variant for this CPU, files, tensors as DLPack has them.
#pragma once

#ifdef __aarch64__
#include <sys/auxv.h>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace network {

struct Device { int32_t kind, index; };
struct Type { uint8_t code, bits; uint16_t lanes; };
struct Tensor {
  void* data; Device device; int32_t ndim; Type dtype; int64_t* shape; int64_t* strides; uint64_t byte_offset;
};

[[noreturn]] inline void fail(const std::string& why) { throw std::runtime_error(why); }

inline std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The CPU's flags, as Linux names them.
#ifdef __aarch64__
// Of the auxiliary vector: under an emulator /proc/cpuinfo has those of its host.
inline std::set<std::string> flags() {
  const char* const names[] = {
      "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc "
      "dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg",
      "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm "
      "svebf16 i8mm bf16 dgh rng bti mte"};
  const unsigned long bits[] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  std::set<std::string> found;
  for (int vector = 0; vector < 2; ++vector) {
    std::istringstream words(names[vector]);
    int bit = 0;
    for (std::string name; words >> name; ++bit) if (bits[vector] >> bit & 1) found.insert(name);
  }
  return found;
}
#else
inline std::set<std::string> flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) {
      std::istringstream words(line.substr(line.find(':') + 1));
      return {std::istream_iterator<std::string>(words), {}};
    }
  }
  return {};
}
#endif

// A line of variants.txt is a name and the flags that it needs.
inline std::string variant(const std::string& network) {
  const char* wanted = std::getenv("EASYQUANT_ISA");
  std::istringstream lines(read(network + "/variants.txt"));
  std::set<std::string> here = flags();
  std::string lacks;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name, missing;
    words >> name;
    if (wanted && name != wanted) continue;
    for (std::string flag; words >> flag;) if (!here.count(flag)) missing += " " + flag;
    if (missing.empty()) return name;
    lacks += "; " + name + " needs" + missing;
  }
  fail("no variant runs on this CPU" + (lacks.empty() ? std::string(": there is none so named") : lacks));
}

// The folder of the shapes that EASYQUANT_SHAPES names, where there are several.
inline std::string at_shapes(const std::string& network) {
  std::ifstream lines(network + "/shapes.txt");
  if (!lines) return network;
  const char* wanted = std::getenv("EASYQUANT_SHAPES");
  std::string known;
  for (std::string line; std::getline(lines, line); known += " " + line) {
    if (wanted && line == wanted) return network + "/" + line;
  }
  fail("the network has several input shapes: set EASYQUANT_SHAPES to one of" + known);
}

inline size_t size(const Tensor& tensor) {
  size_t count = (tensor.dtype.bits * tensor.dtype.lanes + 7) / 8;
  for (int i = 0; i < tensor.ndim; ++i) count *= static_cast<size_t>(tensor.shape[i]);
  return count;
}

inline char* numbers(const Tensor& tensor) { return static_cast<char*>(tensor.data) + tensor.byte_offset; }

// The numbers of an input: line is its line of inputs.txt, count its bytes.
inline std::string input_file(const std::string& file, const std::string& line, size_t count) {
  std::string array = read(file);
  if (array.size() != count) {
    fail(file + " has " + std::to_string(array.size()) + " bytes, input " + line + " takes " +
         std::to_string(count));
  }
  return array;
}

inline void write_output(int64_t i, const Tensor& tensor) {
  const std::string file = "output_" + std::to_string(i) + ".bin";
  std::ofstream(file, std::ios::binary).write(numbers(tensor), static_cast<std::streamsize>(size(tensor)));
  std::printf("%s: %zu bytes\n", file.c_str(), size(tensor));
}

}  // namespace network
