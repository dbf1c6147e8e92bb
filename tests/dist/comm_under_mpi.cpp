// Run by mpirun; see CMakeLists.txt.
//   comm_under_mpi same RANKS    every call gives the bits that ranks-as-threads gives
//   comm_under_mpi large BYTES   broadcasts that much (past 2^31: needs the memory for it, so by
//   hand) comm_under_mpi FAILURE       one rank goes wrong; mpirun must end, and not with 0
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "comm/group.h"
#include "dist/exercise.h"

namespace {

using tamis::Group;

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

void same(Group& world, int ranks) {
  expect(world.size() == ranks, "mpirun started another number of ranks");
  const std::vector<std::byte> results = tamis::exercise(world);
  std::vector<std::byte> expected;
  tamis::run_as_threads(ranks, [&](Group& group) {
    std::vector<std::byte> all = tamis::exercise(group);
    if (group.rank() == world.rank()) expected = std::move(all);
  });
  expect(results.size() > 1000 && results == expected, "MPI and threads differ");
}

void large(Group& world, size_t bytes) {
  std::vector<std::byte> data(bytes);
  const auto pattern = [](size_t i) { return static_cast<std::byte>(i % 251); };
  if (world.rank() == 0) {
    for (size_t i = 0; i < bytes; ++i) data[i] = pattern(i);
  }
  world.broadcast(data, 0);
  size_t wrong = 0;
  for (size_t i = 0; i < bytes; ++i) wrong += data[i] != pattern(i);
  expect(wrong == 0, "broadcast changed bytes");
}

// How one rank goes wrong while the others wait for it.
void go_wrong(Group& world, const std::string& how) {
  const bool last = world.rank() == world.size() - 1;
  float one = 1;
  float two[2] = {1, 1};
  if (how == "throw" || how == "unwind") {
    if (last) throw std::runtime_error("a rank failed on purpose");
    world.barrier();
  } else if (how == "other_call") {
    last ? world.barrier() : world.all_reduce({&one, 1});
  } else if (how == "other_size") {
    last ? world.all_reduce(two) : world.all_reduce({&one, 1});
  } else if (how == "wrong_message") {
    if (world.rank() == 0) world.send(std::as_bytes(std::span(&one, 1)), 1);
    if (world.rank() == 1) world.recv(std::as_writable_bytes(std::span(two)), 0);
    world.barrier();
  } else if (how == "leave") {
    if (!last) world.barrier();
  } else {
    throw std::runtime_error("unknown argument " + how);
  }
}

void run(Group& world, const std::string& what, const std::string& number) {
  if (what == "same") {
    same(world, std::stoi(number));
  } else if (what == "large") {
    large(world, std::stoull(number));
  } else {
    go_wrong(world, what);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  const std::string number = argc > 2 ? argv[2] : "0";
  try {
    const auto world = tamis::world_group();
    if (what == "unwind") {
      // The destructor of the world must end the others.
      go_wrong(*world, what);
      return 0;
    }
    try {
      run(*world, what, number);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank %d: %s\n", world->rank(), error.what());
      world->abandon(3);
      return 3;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
