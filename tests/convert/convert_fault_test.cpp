// What is left on the disk when a conversion is killed or the disk fills, and how much memory a
// conversion needs.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "checkpoint/convert.h"
#include "checkpoint/convert_record.h"
#include "convert/folders.h"

namespace tamis {
namespace {

using namespace convert_test;  // NOLINT(google-build-using-namespace): this file's own helpers

constexpr int kDone = 0, kDeviceFailed = 42, kOther = 43;

ConvertOptions options_for(const std::string& out) {
  ConvertOptions options;
  options.in = mini();
  options.out = out;
  options.to = NumberFormat::kInt8;
  options.threads = 2;
  options.shard_bytes = 2'000'000;
  options.manifest = true;
  return options;
}

// The pid of a child that converts; its exit code is one of the constants above.
pid_t start_conversion(const ConvertOptions& options, rlim_t file_limit) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  if (file_limit != RLIM_INFINITY) {
    const struct rlimit limit = {file_limit, file_limit};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);  // so that write() fails instead
  }
  try {
    convert(options);
  } catch (const DeviceError&) {
    ::_exit(kDeviceFailed);
  } catch (...) {
    ::_exit(kOther);
  }
  ::_exit(kDone);
}

bool is_temporary(const std::string& name) { return name.find(".tmp") != std::string::npos; }

// Every file under its final name is whole: the one of a conversion that nothing disturbed.
void expect_whole_files(const std::string& out, const std::map<std::string, std::string>& want) {
  if (!fs::exists(out)) return;
  for (const auto& [name, text] : contents(out)) {
    if (is_temporary(name)) continue;
    if (name == kConvertRecordName) {
      EXPECT_NO_THROW(load_record(out));  // it grows with the conversion
      continue;
    }
    ASSERT_EQ(want.count(name), 1u) << name;
    EXPECT_TRUE(text == want.at(name)) << name << " has " << text.size() << " bytes";
  }
  // The index completes the folder.
  if (fs::exists(out + "/model.safetensors.index.json")) {
    EXPECT_NO_THROW(Checkpoint::open(out));
  }
}

TEST(ConvertFault, FiftyKillsLeaveOnlyWholeFilesAndTheSameResult) {
  const TemporaryFolder folder(fast_parent());
  const std::string out = folder.path("out"), reference = folder.path("reference");
  const auto start = std::chrono::steady_clock::now();
  const ConvertReport report = convert(options_for(reference));
  const auto whole = std::chrono::steady_clock::now() - start;
  ASSERT_GE(report.files, 5);
  const std::map<std::string, std::string> want = contents(reference);

  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  // On a busy machine a conversion may take seconds; kills come early then and meet all of it in
  // turn.
  const int64_t longest = std::min<int64_t>(
      300'000, std::chrono::duration_cast<std::chrono::microseconds>(whole).count());
  int kills = 0, resumed = 0;
  for (int attempt = 0; kills < 50 && attempt < 1000; ++attempt) {
    const pid_t pid = start_conversion(options_for(out), RLIM_INFINITY);
    ASSERT_GT(pid, 0);
    std::this_thread::sleep_for(
        std::chrono::microseconds(std::uniform_int_distribution<int64_t>(0, longest)(random)));
    ::kill(pid, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    expect_whole_files(out, want);
    if (::testing::Test::HasFatalFailure()) return;
    if (WIFSIGNALED(status)) {
      ++kills;
      if (kills % 4 != 0) continue;  // the next one goes on from here
    } else {
      ASSERT_EQ(WEXITSTATUS(status), kDone);
    }
    resumed += static_cast<int>(convert(options_for(out)).files_resumed);
    ASSERT_TRUE(contents(out) == want);
    fs::remove_all(out);
  }
  EXPECT_EQ(kills, 50);
  EXPECT_GT(resumed, 0);  // else nothing was ever taken up again
}

TEST(ConvertFault, AFailingDiskLeavesOnlyWholeFiles) {
  const TemporaryFolder folder(fast_parent());
  const std::string reference = folder.path("reference"), out = folder.path("out");
  convert(options_for(reference));
  const std::map<std::string, std::string> want = contents(reference);
  int failures = 0;
  for (rlim_t limit = 0; limit <= 2'400'000; limit += 300'000) {
    const pid_t pid = start_conversion(options_for(out), limit);
    ASSERT_GT(pid, 0);
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFEXITED(status));
    ASSERT_NE(WEXITSTATUS(status), kOther);
    failures += WEXITSTATUS(status) == kDeviceFailed ? 1 : 0;
    expect_whole_files(out, want);
    for (const auto& [name, text] : contents(out)) EXPECT_FALSE(is_temporary(name)) << name;
  }
  EXPECT_GE(failures, 4);
  convert(options_for(out));
  EXPECT_TRUE(contents(out) == want);
}

TEST(ConvertFault, ADamagedFileIsWrittenAgain) {
  const TemporaryFolder folder(fast_parent());
  const std::string out = folder.path("out");
  const int64_t files = convert(options_for(out)).files;
  const std::map<std::string, std::string> want = contents(out);
  const std::string shard = want.lower_bound("model-00002")->first;
  std::string damaged = want.at(shard);
  damaged[damaged.size() / 2] ^= 1;
  write_file(out + "/" + shard, damaged);
  write_file(out + "/model-00001-of-00099.safetensors.tmp", "of nobody");
  EXPECT_EQ(convert(options_for(out)).files_resumed, files - 1);
  EXPECT_EQ(read_file(out + "/" + shard), want.at(shard));
}

TEST(ConvertFault, TwoAtOnceAreRefused) {
  const TemporaryFolder folder;
  ConvertOptions options = options_for(folder.path("out"));
  bool refused = false;
  options.progress = [&](int64_t, int64_t) {
    if (refused) return;
    EXPECT_THROW(convert(options_for(options.out)), UsageError);
    refused = true;
  };
  convert(options);
  EXPECT_TRUE(refused);
}

TEST(ConvertFault, ASourceThatChangesIsNoticed) {
  const TemporaryFolder folder;
  const std::string model = folder.path("model");
  fs::copy(mini(), model);
  ConvertOptions options = options_for(folder.path("out"));
  options.in = model;
  convert(options);
  const std::string shard = model + "/model-00001-of-00002.safetensors";
  fs::last_write_time(shard, fs::last_write_time(shard) + std::chrono::seconds(1));
  EXPECT_THROW(convert(options), InputError);  // another source: not to be taken up
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

int64_t anonymous_bytes() {
  std::istringstream status(read_file("/proc/self/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssAnon:", 0) == 0) return std::stoll(line.substr(8)) * 1024;
  }
  return -1;
}

// A checkpoint of one weight of 128 MiB, all zeros and so a sparse file.
void make_large_model(const std::string& folder, const std::string& name) {
  fs::create_directory(folder);
  write_file(folder + "/config.json",
             R"({"num_hidden_layers": 1, "num_attention_heads": 16, "n_routed_experts": 8})");
  const std::vector<TensorSpec> specs = {{name, DType::kBF16, {16384, 4096}}};
  const std::string header = make_safetensors_header(specs, {});
  const std::string path = folder + "/model.safetensors";
  write_file(path, header);
  fs::resize_file(path, header.size() + (size_t{128} << 20));
}

// Pages of mapped files are the system's to take back, so what counts is anonymous memory. The
// bound asked for is the largest tensor + 64 MiB; half of that tensor has to do.
TEST(ConvertFault, MemoryStaysFarUnderTheLargestTensor) {
  const TemporaryFolder folder;
  const std::string model = folder.path("model");
  make_large_model(model, "model.layers.0.self_attn.o_proj.weight");
  for (const int ranks : {0, 2}) {
    ConvertOptions options;
    options.in = model;
    options.out = folder.path("out" + std::to_string(ranks));
    options.model_parallel = ranks;
    options.to = ranks == 0 ? NumberFormat::kInt4 : NumberFormat::kKeep;
    options.threads = 2;
    const int64_t before = anonymous_bytes();
    ASSERT_GT(before, 0);
    int64_t peak = 0;
    options.progress = [&peak](int64_t, int64_t) { peak = std::max(peak, anonymous_bytes()); };
    convert(options);
    EXPECT_GT(peak, 0);
    EXPECT_LT(peak - before, int64_t{64} << 20);
    RecordProperty("anonymous_mib", static_cast<int>((peak - before) >> 20));
    std::cout << "anonymous memory: " << ((peak - before) >> 20) << " MiB\n";
  }
}

#endif

}  // namespace
}  // namespace tamis
