// A build without MPI: this binary is linked with no_mpi.cpp whether or not MPI is installed.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "comm/group.h"

namespace tamis {
namespace {

class NoMpi : public testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override { clear(); }
  static void clear() {
    for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) unsetenv(name);
  }
};

TEST_F(NoMpi, PlainStartIsTheGroupOfOne) {
  const auto world = world_group();
  EXPECT_EQ(world->rank(), 0);
  EXPECT_EQ(world->size(), 1);
}

TEST_F(NoMpi, UnderALauncherSaysThatThisBuildHasNoMpi) {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"}) {
    setenv(name, "2", 1);
    try {
      world_group();
      FAIL() << name;
    } catch (const UsageError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find(std::string(name) + "=2"), std::string::npos) << message;
      EXPECT_NE(message.find("no MPI"), std::string::npos) << message;
    }
    unsetenv(name);
  }
}

}  // namespace
}  // namespace tamis
