// Ranks as GPUs, over NCCL's messages. A host group compares calls and carries what is not device
// memory; so ranks that took different ways get an error before anything waits on a device.
#include "comm/nccl.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <exception>
#include <type_traits>

#include "base/error.h"
#include "comm/call.h"

namespace tamis {
namespace {

class Library {
 public:
  Library() {
    const std::string name = fmt::format("libnccl.so.{}", NCCL_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw DeviceError("several GPUs: " + name +
                        " cannot be loaded: install NCCL (libnccl2) or set LD_LIBRARY_PATH");
    }
    const auto find = [&](auto& function, const char* symbol) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr) throw DeviceError("several GPUs: " + name + " lacks " + symbol);
    };
    find(error_text, "ncclGetErrorString");
    find(unique_id, "ncclGetUniqueId");
    find(init, "ncclCommInitRank");
    find(destroy, "ncclCommDestroy");
    find(abort, "ncclCommAbort");
    find(begin, "ncclGroupStart");
    find(end, "ncclGroupEnd");
    find(send, "ncclSend");
    find(recv, "ncclRecv");
  }

  void check(ncclResult_t result, const char* call) const {
    if (result == ncclSuccess) return;
    throw DeviceError(fmt::format("{}: {}; NCCL_DEBUG=WARN tells more", call, error_text(result)));
  }

  decltype(&ncclGetErrorString) error_text = nullptr;
  decltype(&ncclGetUniqueId) unique_id = nullptr;
  decltype(&ncclCommInitRank) init = nullptr;
  decltype(&ncclCommDestroy) destroy = nullptr;
  decltype(&ncclCommAbort) abort = nullptr;
  decltype(&ncclGroupStart) begin = nullptr;
  decltype(&ncclGroupEnd) end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

void check_cuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  throw DeviceError(fmt::format("{}: {}", call, cudaGetErrorString(error)));
}

class NcclGroup final : public Group {
 public:
  NcclGroup(Group& host, DeviceRank device, std::unique_ptr<Group> own_host)
      : Group(host.rank(), host.size()),
        own_host_(std::move(own_host)),
        host_(host),
        device_(device),
        unwinding_at_start_(std::uncaught_exceptions()) {
    ncclUniqueId id = {};
    if (rank() == 0) library().check(library().unique_id(&id), "ncclGetUniqueId");
    host_.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);
    library().check(library().init(&comm_, size(), id, rank()), "ncclCommInitRank");
  }

  ~NcclGroup() override {
    // Destroying waits for the other ranks, which may never come after an error.
    if (std::uncaught_exceptions() > unwinding_at_start_) {
      library().abort(comm_);
    } else {
      library().destroy(comm_);
    }
  }

  void abandon(int exit_code) override { host_.abandon(exit_code); }

 private:
  void exchange(const Call& call, Outgoing to, Incoming from) override {
    if (call.op == Op::kAllReduce || call.op == Op::kReduceScatter) {
      throw UsageError("a group of GPUs does not add: send the parts by all_to_all and add them");
    }
    compare(call, to, from);
    if (call.op == Op::kSplit) return host_.all_to_all(to, from);  // colours are on the host
    library().check(library().begin(), "ncclGroupStart");
    for (int r = 0; r < size(); ++r) {
      const auto at = static_cast<size_t>(r);
      if (r == rank()) continue;
      if (!to[at].empty()) send_bytes(to[at], r);
      if (!from[at].empty()) recv_bytes(from[at], r);
    }
    library().check(library().end(), "ncclGroupEnd");
    const auto self = static_cast<size_t>(rank());
    if (!to[self].empty() && to[self].data() != from[self].data()) {
      copy(from[self].data(), to[self].data(), to[self].size());
    }
  }

  // Every rank says what it does to every other and hears it from them.
  void compare(const Call& call, Outgoing to, Incoming from) {
    std::vector<Call> mine(to.size(), call), theirs(to.size());
    std::vector<std::span<const std::byte>> out;
    std::vector<std::span<std::byte>> in;
    for (size_t r = 0; r < to.size(); ++r) {
      mine[r].part = static_cast<int64_t>(to[r].size());
      out.push_back(std::as_bytes(std::span(&mine[r], 1)));
      in.push_back(std::as_writable_bytes(std::span(&theirs[r], 1)));
    }
    host_.all_to_all(out, in);
    for (size_t r = 0; r < to.size(); ++r) {
      if (static_cast<int>(r) == rank()) continue;
      refuse(mismatch(rank(), call, static_cast<int>(r), theirs[r],
                      static_cast<int64_t>(from[r].size())));
    }
  }

  void send_to(const Call& call, std::span<const std::byte> data, int to) override {
    host_.send(std::as_bytes(std::span(&call, 1)), to);
    send_bytes(data, to);
  }

  void recv_from(const Call& call, std::span<std::byte> data, int from) override {
    Call theirs;
    host_.recv(std::as_writable_bytes(std::span(&theirs, 1)), from);
    refuse(mismatch(rank(), call, from, theirs, static_cast<int64_t>(data.size())));
    recv_bytes(data, from);
  }

  std::unique_ptr<Group> part(int colour, std::span<const int>) override {
    std::unique_ptr<Group> host = host_.split(colour);
    Group& kept = *host;
    return std::make_unique<NcclGroup>(kept, device_, std::move(host));
  }

  void send_bytes(std::span<const std::byte> data, int to) {
    library().check(library().send(data.data(), data.size(), ncclInt8, to, comm_, device_.stream),
                    "ncclSend");
  }
  void recv_bytes(std::span<std::byte> data, int from) {
    library().check(library().recv(data.data(), data.size(), ncclInt8, from, comm_, device_.stream),
                    "ncclRecv");
  }
  void copy(void* to, const void* from, size_t bytes) {
    check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device_.stream),
               "cudaMemcpyAsync");
  }

  static void refuse(const std::string& wrong) {
    if (!wrong.empty()) throw UsageError(wrong);
  }

  std::unique_ptr<Group> own_host_;  // of a part
  Group& host_;
  DeviceRank device_;
  int unwinding_at_start_;
  ncclComm_t comm_ = nullptr;
};

}  // namespace

std::unique_ptr<Group> nccl_group(Group& host, DeviceRank device) {
  check_cuda(cudaSetDevice(device.ordinal), "cudaSetDevice");
  return std::make_unique<NcclGroup>(host, device, nullptr);
}

}  // namespace tamis
