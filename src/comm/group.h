// A group of ranks that work on one model. A group of one is the ordinary case; code that uses a
// Group has no "if distributed".
//
//   std::unique_ptr<Group> world = world_group();   // MPI under mpirun, else the group of one
//   world->all_reduce(partial_sums);
//
// Every call but send and recv is collective: all ranks make the same calls in the same order with
// the same sizes. Calls that do not match raise UsageError with rank, call and sizes on the ranks
// that see it. Sums run in rank order, ((r0 + r1) + r2) + ..., so every rank gets the same bits,
// and the same bits from every transport (single, threads, MPI). A NaN stays a NaN; its payload
// is not promised.
//
// A Group belongs to one thread at a time. Sizes are not limited to 2^31 bytes. Buffers of one
// call do not overlap. After an error a group serves no further call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/function_ref.h"

namespace tamis {

struct Call;  // comm/call.h: what a rank says about the call it is in

class Group {
 public:
  virtual ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // data = sum over ranks, in place.
  void all_reduce(std::span<float> data);
  // out = part number rank() of the sum of `in`; in.size() == out.size() * size().
  void reduce_scatter(std::span<const float> in, std::span<float> out);
  // out = in of rank 0, in of rank 1, ...; out.size() == in.size() * size().
  void all_gather(std::span<const float> in, std::span<float> out);
  void all_gather(std::span<const std::byte> in, std::span<std::byte> out);
  // to[r] arrives at rank r in its from[rank()]. Both have size() entries; sizes may differ from
  // pair to pair, but each from[r] is as long as what rank r sends (all_gather the counts first).
  void all_to_all(std::span<const std::span<const std::byte>> to,
                  std::span<const std::span<std::byte>> from);
  // data of rank `root` to all.
  void broadcast(std::span<std::byte> data, int root);
  void barrier();

  // One message from this rank to rank `to`, which takes it with recv from this rank, same size.
  // Count on send to wait for its recv (MPI lets small messages go earlier).
  void send(std::span<const std::byte> data, int to);
  void recv(std::span<std::byte> data, int from);

  // Collective: the group of all ranks that gave the same colour, in the order of their ranks
  // here. Destroy it before this group, on all its ranks.
  std::unique_ptr<Group> split(int colour);

  // Gives up for all ranks, after this one has failed and has said why. Threads: the calls of the
  // other ranks throw. MPI: ends every process with exit_code and does not return, so catch and
  // report first. In a group of one there is nobody to tell: returns.
  virtual void abandon(int exit_code) = 0;

 protected:
  using Outgoing = std::span<const std::span<const std::byte>>;
  using Incoming = std::span<const std::span<std::byte>>;

  Group(int rank, int size) : rank_(rank), size_(size) {}

 private:
  // The one thing that a transport does: compares `call` over all ranks and moves to[r] of each
  // rank to from[rank] of rank r, itself included (there the two may be the same memory).
  virtual void exchange(const Call& call, Outgoing to, Incoming from) = 0;
  virtual void send_to(const Call& call, std::span<const std::byte> data, int to) = 0;
  virtual void recv_from(const Call& call, std::span<std::byte> data, int from) = 0;
  // members: the ranks of this group that gave `colour`, ascending; this rank is one of them.
  virtual std::unique_ptr<Group> part(int colour, std::span<const int> members) = 0;

  void gather(const Call& call, std::span<const std::byte> in, std::span<std::byte> out);
  void reduce_whole(const Call& call, std::span<float> data);
  void reduce_by_parts(const Call& call, std::span<float> data);
  void sum_part(const Call& call, std::span<const float> in, int64_t stride, std::span<float> out);
  void check_peer(int peer, const char* what) const;

  int rank_;
  int size_;
  int64_t calls_ = 0;           // collective calls so far
  std::vector<float> scratch_;  // what the other ranks sent for a sum; bounded by the block size
};

// The group of one.
std::unique_ptr<Group> single_group();

// MPI's world when a launcher started this process (mpirun sets OMPI_COMM_WORLD_SIZE or PMI_SIZE),
// else the group of one; a plain start does not initialise MPI. At most once a process, and it
// outlives the groups split from it. Destroying it ends MPI; while an exception unwinds, it ends
// all ranks instead, so that none waits for this one. UsageError if there is a launcher but this
// build has no MPI; DeviceError if MPI fails.
std::unique_ptr<Group> world_group();

// What abandon of the world does, for main(), which has no Group at hand when an error reaches it.
// Returns when MPI is not up.
void abandon_world(int exit_code);

// Runs body on `ranks` threads, each with its rank's Group; for tests and for comparing with MPI.
// When a rank throws, the calls of the others throw too and the first exception is rethrown here.
// Ranks that wait for each other for ever get a UsageError that says what each waits for.
void run_as_threads(int ranks, FunctionRef<void(Group&)> body);

}  // namespace tamis
