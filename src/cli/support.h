// What several subcommands share: printing results and progress.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tamis::cli {

// Reads all of stdin; DeviceError if reading fails.
std::string read_stdin();

// A JSON array of token ids; InputError naming the file and the entry. "-" is stdin.
std::vector<int32_t> read_ids_file(const std::string& path);

// Writes to stdout and flushes; DeviceError if the pipe is gone or the disk is full.
void write_stdout(std::string_view text);

}  // namespace tamis::cli
