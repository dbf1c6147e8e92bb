// Log lines on stderr. Results go to stdout; nothing else does.
#pragma once

#include <string_view>

namespace tamis {

enum class LogLevel { kError, kWarning, kInfo, kDebug };

void set_log_level(LogLevel level);
void log_info(std::string_view message);
void log_warning(std::string_view message);
void log_debug(std::string_view message);

}  // namespace tamis
