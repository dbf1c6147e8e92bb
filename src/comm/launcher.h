// Whether an MPI launcher started this process.
#pragma once

#include <string>

namespace tamis {

// "NAME=value" of the first launcher variable that is set (Open MPI's, MPICH's, PMIx's), else "".
// Reading the environment is all it does, so that a plain start costs nothing.
std::string launcher_variable();

// This process's rank as the launcher's variables say it; 0 without a launcher. For what must be
// settled before or without a Group, such as who prints.
int launcher_rank();

}  // namespace tamis
