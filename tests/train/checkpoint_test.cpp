// Checkpoints of a run when the process is killed at any moment or the disk is full, and which of
// them stay.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <random>
#include <thread>

#include "base/error.h"
#include "checkpoint/scratch_folder.h"
#include "train/tiny.h"
#include "train/train_checkpoint.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr int kDone = 0, kDeviceFailed = 42, kOther = 43;

// Every value tells its step.
TrainingState state_of(int64_t step, const ParameterTable& table, bool end = false) {
  TrainingState s;
  s.position.step = step;
  s.position.stage_end = end;
  s.clock_model = 2 * step;
  s.weights.assign(static_cast<size_t>(table.size()), static_cast<float>(step));
  s.first.assign(s.weights.size(), static_cast<float>(step) + 0.25F);
  s.second.assign(s.weights.size(), static_cast<float>(step) + 0.5F);
  return s;
}

void expect_whole(const TrainingState& s, const ParameterTable& table) {
  const TrainingState want = state_of(s.position.step, table);
  EXPECT_EQ(s.clock_model, want.clock_model);
  EXPECT_EQ(s.weights, want.weights);
  EXPECT_EQ(s.first, want.first);
  EXPECT_EQ(s.second, want.second);
}

std::vector<std::string> names_of(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& e : fs::directory_iterator(folder)) names.push_back(e.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// A child that writes checkpoints from `first` on until it is killed, or `count` of them; its exit
// code is one of the constants above.
pid_t start_writing(const std::string& folder, const ParameterTable& table, int64_t first,
                    int64_t count, rlim_t file_limit = RLIM_INFINITY) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  if (file_limit != RLIM_INFINITY) {
    const struct rlimit limit = {file_limit, file_limit};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);  // so that write() fails instead
  }
  try {
    CheckpointWriter writer(folder, table, {2, 0});
    for (int64_t i = 0; i < count; ++i) writer.start(state_of(first + i, table));
    writer.wait();
  } catch (const DeviceError&) {
    ::_exit(kDeviceFailed);
  } catch (...) {
    ::_exit(kOther);
  }
  ::_exit(kDone);
}

// Until the newest checkpoint is of `step` or later; ten seconds at most.
void wait_for_step(const std::string& folder, int64_t step) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  std::string number = std::to_string(step);
  number.insert(0, 8 - number.size(), '0');
  while (std::chrono::steady_clock::now() < give_up) {
    const auto newest = newest_checkpoint(folder);
    if (newest && fs::path(*newest).filename() >= "step-" + number) return;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

class Checkpoints : public testing::Test {
 protected:
  ModelConfig config_ = tiny_config();
  ParameterTable table_{config_};
  ScratchFolder folder_;
};

TEST_F(Checkpoints, TwoHundredKillsLeaveNoneThatCannotBeRead) {
  const std::string folder = folder_ / "checkpoints";
  std::mt19937 random(1);
  std::uniform_int_distribution<int> wait_us(0, 12000);
  int killed = 0, cut_short = 0;
  int64_t next = 1;
  for (int i = 0; i < 200; ++i) {
    const pid_t pid = start_writing(folder, table_, next, 1 << 20);
    ASSERT_GT(pid, 0);
    // Every other one is killed soon after its first checkpoint, however slow the machine is.
    if (i % 2 == 1) wait_for_step(folder, next);
    std::this_thread::sleep_for(std::chrono::microseconds(wait_us(random)));
    ::kill(pid, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    killed += WIFSIGNALED(status) ? 1 : 0;
    const auto newest = newest_checkpoint(folder);
    if (!newest) continue;
    for (const std::string& name : names_of(folder)) {
      if (name.find(".tmp") != std::string::npos) {
        ++cut_short;
        continue;
      }
      expect_whole(load_checkpoint(folder + "/" + name, table_), table_);
    }
    const int64_t found = load_checkpoint(*newest, table_).position.step;
    EXPECT_GE(found, next - 1) << "the one before is lost";
    next = found + 1;
  }
  EXPECT_EQ(killed, 200);
  EXPECT_GT(next, 20) << "the kills came before anything was written";
  EXPECT_GT(cut_short, 5) << "no kill came during a write";
}

TEST_F(Checkpoints, AFullDiskLeavesTheLastGoodOne) {
  const std::string folder = folder_ / "checkpoints";
  save_checkpoint(folder, state_of(1, table_), table_);
  const auto size = static_cast<rlim_t>(fs::file_size(*newest_checkpoint(folder)));
  for (const rlim_t limit : {rlim_t{0}, rlim_t{4096}, size / 2, size - 1}) {
    const pid_t pid = start_writing(folder, table_, 2, 3, limit);
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), kDeviceFailed);
    EXPECT_EQ(names_of(folder), std::vector<std::string>{"step-00000001.safetensors"});
    expect_whole(load_checkpoint(*newest_checkpoint(folder), table_), table_);
  }
}

TEST_F(Checkpoints, KeepsTheLastThoseOfAMultipleAndStageEnds) {
  const std::string folder = folder_ / "checkpoints";
  CheckpointWriter writer(folder, table_, {2, 4});
  for (int64_t step = 1; step <= 11; ++step) writer.start(state_of(step, table_, step == 6));
  writer.wait();
  EXPECT_EQ(names_of(folder),
            (std::vector<std::string>{"step-00000004.safetensors", "step-00000006-end.safetensors",
                                      "step-00000008.safetensors", "step-00000010.safetensors",
                                      "step-00000011.safetensors"}));
  expect_whole(load_checkpoint(*newest_checkpoint(folder), table_), table_);
}

TEST_F(Checkpoints, AnErrorOfTheWriterReachesTheRun) {
  folder_.write("occupied", "a file where the folder should be");
  CheckpointWriter writer(folder_ / "occupied", table_, {2, 0});
  writer.start(state_of(1, table_));
  EXPECT_ANY_THROW(writer.wait());
  EXPECT_NO_THROW(writer.wait());
}

}  // namespace
}  // namespace tamis
