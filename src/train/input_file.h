// Files and folders that a recipe or a command names: what is missing is said with what to do.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace tamis {

// InputError "PATH: no such file; ADVICE", or what else keeps it from being a file to read.
void want_file(const std::string& path, std::string_view advice);
// Makes the folder, and those above it. InputError "PATH: the folder cannot be made (why); ADVICE".
void make_folder(const std::string& path, std::string_view advice);

}  // namespace tamis
