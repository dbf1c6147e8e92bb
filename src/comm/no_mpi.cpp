// Stands in for mpi.cpp where MPI is absent or switched off (TAMIS_MPI).
#include "base/error.h"
#include "comm/group.h"
#include "comm/launcher.h"

namespace tamis {

std::unique_ptr<Group> world_group() {
  const std::string launcher = launcher_variable();
  if (!launcher.empty()) {
    throw UsageError("started by an MPI launcher (" + launcher +
                     "), but this build has no MPI: install an MPI library and build with "
                     "-DTAMIS_MPI=ON, or start without mpirun");
  }
  return single_group();
}

void abandon_world(int) {}

}  // namespace tamis
