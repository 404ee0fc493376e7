// What runs on a board without Python: a compiled network, or TVM's RPC server for tuning.
//
//   device run NET INPUT=INPUT.bin OUTPUT.bin         one inference; raw tensors. NET is what export_library
//                                                    wrote, or the folder of an unpacked archive of tvmc
//   device serve PORT [TRACKER_HOST TRACKER_PORT KEY] an RPC server on PORT (0: any), at a tracker if named
//
// Needs libtvm_runtime.so of TVM 0.19 and its headers; device.py in this folder compiles it. Each session is
// served by a process of its own, so a kernel that crashes ends its session and not the server.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <tvm/runtime/module.h>
#include <tvm/runtime/ndarray.h>
#include <tvm/runtime/packed_func.h>
#include <tvm/runtime/registry.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

using namespace tvm::runtime;
using std::string;

namespace {

constexpr int32_t kSessionMagic = 0xFF271;  // tvm/rpc/base.py: RPC_MAGIC, also the code for success
constexpr int32_t kMismatch = kSessionMagic + 2;
constexpr int32_t kTrackerMagic = 0x2F271;
enum Request { kPut = 3, kUpdateInfo = 5, kPendingKeys = 7 };

struct Lost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

  void Send(const void* data, size_t size) {
    for (const char* p = static_cast<const char*>(data); size > 0;) {
      ssize_t n = send(fd_, p, size, MSG_NOSIGNAL);
      if (n <= 0) throw Lost("connection lost");
      p += n, size -= n;
    }
  }
  void Receive(void* data, size_t size) {
    for (char* p = static_cast<char*>(data); size > 0;) {
      ssize_t n = recv(fd_, p, size, 0);
      if (n <= 0) throw Lost("connection lost");
      p += n, size -= n;
    }
  }
  void SendNumber(int32_t value) { Send(&value, sizeof value); }
  int32_t ReceiveNumber() {
    int32_t value;
    Receive(&value, sizeof value);
    return value;
  }
  void SendText(const string& text) {
    SendNumber(static_cast<int32_t>(text.size()));
    Send(text.data(), text.size());
  }
  string ReceiveText() {
    int32_t size = ReceiveNumber();
    if (size < 0 || size > (1 << 20)) throw Lost("no TVM message");
    string text(size, '\0');
    Receive(&text[0], text.size());
    return text;
  }

 private:
  int fd_;
};

int Listen(int port, int* chosen) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t size = sizeof address;
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) || listen(fd, 8) ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size)) {
    throw std::runtime_error("cannot listen on port " + std::to_string(port) + ": " + strerror(errno));
  }
  *chosen = ntohs(address.sin_port);
  return fd;
}

int Connect(const string& host, const string& port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found)) throw Lost("unknown host " + host);
  int fd = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
  int failed = connect(fd, found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  if (failed) {
    close(fd);
    throw Lost("no tracker at " + host + ":" + port);
  }
  return fd;
}

// The board's end of the tracker protocol: offers the server under a fresh match key.
class Tracker {
 public:
  Tracker(const string& host, const string& port, const string& key, int own_port)
      : socket_(Connect(host, port)), key_(key), own_port_(own_port) {
    socket_.SendNumber(kTrackerMagic);
    if (socket_.ReceiveNumber() != kTrackerMagic) throw Lost(host + ":" + port + " is no tracker");
    Ask(kUpdateInfo, ", {\"key\": \"server:" + key_ + "\", \"addr\": [null, " + std::to_string(own_port_) + "]}");
  }
  void Offer() {
    match_ = key_ + ":" + std::to_string(getpid()) + "." + std::to_string(++offers_);
    Ask(kPut, ", \"" + key_ + "\", [" + std::to_string(own_port_) + ", \"" + match_ + "\"], null");
  }
  // Whether a client was given our key; it should connect at once.
  bool Taken() { return Ask(kPendingKeys, "").find('"' + match_ + '"') == string::npos; }
  const string& match() const { return match_; }

 private:
  string Ask(Request code, const string& rest) {
    socket_.SendText("[" + std::to_string(static_cast<int>(code)) + rest + "]");
    return socket_.ReceiveText();
  }
  Socket socket_;
  string key_, match_;
  int own_port_, offers_ = 0;
};

string& Folder() {
  static string folder;
  return folder;
}

// One session: upload, load, run, until the client leaves. Runs in a process of its own.
void Session(Socket* client, int seconds) {
  if (seconds > 0) alarm(seconds);
  char name[] = "/tmp/tvm_device_XXXXXX";
  if (!mkdtemp(name)) throw std::runtime_error("cannot make a folder in /tmp");
  Folder() = string(name) + "/";
  const PackedFunc* loop = Registry::Get("rpc.ServerLoop");
  if (!loop) throw std::runtime_error("this libtvm_runtime.so has no RPC");
  try {
    (*loop)(client->fd());
  } catch (const std::exception& error) {
    fprintf(stderr, "session ended: %.300s\n", error.what());
  }
  std::filesystem::remove_all(name);
}

// Answers one client; false if its key is not ours (keys are only checked where a tracker gave one).
bool Welcome(Socket* client, const string& key, const string& match, int* seconds) {
  if (client->ReceiveNumber() != kSessionMagic) return false;
  string hello = client->ReceiveText();
  size_t end = hello.find(' ');
  if (!match.empty() && hello.substr(0, end) != "client:" + match) {
    client->SendNumber(kMismatch);
    return false;
  }
  size_t at = hello.find("-timeout=");
  *seconds = at == string::npos ? 0 : static_cast<int>(std::atof(hello.c_str() + at + 9)) + 1;
  client->SendNumber(kSessionMagic);
  client->SendText("server:" + key);
  return true;
}

[[noreturn]] void Serve(int port, const string& host, const string& tracker_port, const string& key) {
  int own_port = 0;
  Socket listener(Listen(port, &own_port));
  printf("listening on %d\n", own_port);
  fflush(stdout);
  std::unique_ptr<Tracker> tracker;
  bool offered = false;
  int taken_for = 0;  // seconds since a client was given our key without coming
  while (true) {
    try {
      bool fresh = !host.empty() && !tracker;
      if (fresh) {
        tracker = std::make_unique<Tracker>(host, tracker_port, key, own_port);
        offered = false;
      }
      if (tracker && !offered) {
        tracker->Offer();
        offered = true, taken_for = 0;
      }
      if (fresh) {  // only now: a client that asks the tracker from here on finds us
        printf("offered as %s to the tracker at %s:%s\n", key.c_str(), host.c_str(), tracker_port.c_str());
        fflush(stdout);
      }
      pollfd wait{listener.fd(), POLLIN, 0};
      if (poll(&wait, 1, 2000) <= 0) {
        if (tracker) taken_for = tracker->Taken() ? taken_for + 2 : 0;
        if (taken_for > 6) offered = false;
        continue;
      }
      Socket client(accept(listener.fd(), nullptr, nullptr));
      int seconds = 0;
      if (!Welcome(&client, key, tracker ? tracker->match() : "", &seconds)) continue;
      fflush(stdout);
      pid_t child = fork();
      if (child == 0) {
        tracker.reset();  // the tracker sees at once when the server itself is gone
        int status = 0;
        try {
          Session(&client, seconds);
        } catch (const std::exception& error) {
          fprintf(stderr, "error: %s\n", error.what());
          status = 1;
        }
        _exit(status);
      }
      int status = 0;
      waitpid(child, &status, 0);
      if (WIFSIGNALED(status)) fprintf(stderr, "session ended by signal %d\n", WTERMSIG(status));
      offered = false;
    } catch (const Lost& error) {
      fprintf(stderr, "%s; trying again\n", error.what());
      tracker.reset();
      sleep(1);
    }
  }
}

size_t Bytes(const NDArray& array) {
  size_t size = (array->dtype.bits * array->dtype.lanes + 7) / 8;
  for (int i = 0; i < array->ndim; ++i) size *= array->shape[i];
  return size;
}

string Read(const string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return string(std::istreambuf_iterator<char>(file), {});
}

Module LoadLibrary(const string& path) {
  try {
    return Module::LoadFromFile(path, "so");
  } catch (const std::exception&) {
    throw std::runtime_error(path + " is no network for this machine: compile it with -mtriple=aarch64-linux-gnu");
  }
}

Module Load(const string& path) {
  DLDevice cpu{kDLCPU, 0};
  if (!std::filesystem::exists(path)) throw std::runtime_error("there is no " + path);
  if (!std::filesystem::is_directory(path)) return LoadLibrary(path).GetFunction("default")(cpu);
  Module library = LoadLibrary(path + "/mod.so");
  Module network = (*Registry::Get("tvm.graph_executor.create"))(
      Read(path + "/mod.json"), library, static_cast<int>(cpu.device_type), cpu.device_id);
  string parameters = Read(path + "/mod.params");
  network.GetFunction("load_params")(TVMByteArray{parameters.data(), parameters.size()});
  return network;
}

void Run(const string& path, const string& input, const string& output) {
  size_t equals = input.find('=');
  if (equals == string::npos) throw std::runtime_error("the input is NAME=FILE, not " + input);
  Module network = Load(path);
  int index = network.GetFunction("get_input_index")(input.substr(0, equals));
  if (index < 0) throw std::runtime_error("the network has no input " + input.substr(0, equals));
  NDArray x = network.GetFunction("get_input")(index);
  string file = input.substr(equals + 1);
  std::ifstream in(file, std::ios::binary | std::ios::ate);
  if (!in || static_cast<size_t>(in.tellg()) != Bytes(x)) {
    throw std::runtime_error(file + ": the network takes " + std::to_string(Bytes(x)) + " bytes");
  }
  in.seekg(0);
  in.read(static_cast<char*>(x->data), Bytes(x));
  network.GetFunction("run")();
  NDArray y = network.GetFunction("get_output")(0);
  std::ofstream out(output, std::ios::binary);
  out.write(static_cast<char*>(y->data), Bytes(y));
  if (!out.flush()) throw std::runtime_error("cannot write " + output);
}

}  // namespace

TVM_REGISTER_GLOBAL("tvm.rpc.server.workpath").set_body_typed([](string name) { return Folder() + name; });
TVM_REGISTER_GLOBAL("tvm.rpc.server.load_module").set_body_typed([](string name) {
  return Module::LoadFromFile(Folder() + name, "so");
});

int main(int count, char** words) {
  try {
    if (count == 5 && !strcmp(words[1], "run")) {
      Run(words[2], words[3], words[4]);
      return 0;
    }
    if ((count == 3 || count == 6) && !strcmp(words[1], "serve")) {
      bool tracked = count == 6;
      Serve(atoi(words[2]), tracked ? words[3] : "", tracked ? words[4] : "", tracked ? words[5] : "");
    }
    fprintf(stderr, "use: device run NET INPUT=INPUT.bin OUTPUT.bin\n"
                    "     device serve PORT [TRACKER_HOST TRACKER_PORT KEY]\n");
    return 2;
  } catch (const std::exception& error) {
    string text = error.what();  // of TVM's errors, which carry a backtrace, the sentence
    size_t start = text.rfind("Error: ");
    text = start == string::npos ? text : text.substr(start + 7);
    fprintf(stderr, "error: %s\n", text.substr(0, text.find('\n')).c_str());
    return 1;
  }
}
