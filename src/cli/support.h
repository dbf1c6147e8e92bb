// What several subcommands share: printing results and progress.
#pragma once

#include <string>
#include <string_view>

namespace tamis::cli {

// Reads all of stdin; DeviceError if reading fails.
std::string read_stdin();

// Writes to stdout and flushes; DeviceError if the pipe is gone or the disk is full.
void write_stdout(std::string_view text);

}  // namespace tamis::cli
