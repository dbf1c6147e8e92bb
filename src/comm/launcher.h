// Whether an MPI launcher started this process.
#pragma once

#include <string>

namespace tamis {

// "NAME=value" of the first launcher variable that is set (Open MPI's, MPICH's, PMIx's), else "".
// Reading the environment is all it does, so that a plain start costs nothing.
std::string launcher_variable();

}  // namespace tamis
