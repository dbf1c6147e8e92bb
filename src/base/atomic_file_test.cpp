#include "base/atomic_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

class AtomicFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tamis-atomic-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name = "f") const { return folder_ + "/" + name; }
  std::string contents(const std::string& name = "f") const {
    std::ifstream in(path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  size_t files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }

  std::string folder_;
};

TEST_F(AtomicFileTest, AppearsOnlyAtCommit) {
  AtomicFile out(path());
  out.write("one ");
  out.write("two");
  EXPECT_FALSE(fs::exists(path()));
  EXPECT_EQ(out.bytes_written(), 7);
  out.commit();
  EXPECT_EQ(contents(), "one two");
  EXPECT_EQ(files(), 1u);
  EXPECT_THROW(out.write("x"), UsageError);
  EXPECT_THROW(out.commit(), UsageError);
}

TEST_F(AtomicFileTest, WithoutCommitTheOldFileStays) {
  write_file_atomically(path(), "old");
  {
    AtomicFile out(path());
    out.write("new");
  }
  EXPECT_EQ(contents(), "old");
  EXPECT_EQ(files(), 1u);
  write_file_atomically(path(), "");
  EXPECT_EQ(contents(), "");
}

TEST_F(AtomicFileTest, FixedNameTakesOverALeftoverAndHoldsALock) {
  std::ofstream(path() + ".tmp") << "left by a killed run, longer than what follows";
  AtomicFile out(path(), AtomicFile::TemporaryName::kFixed);
  EXPECT_THROW(AtomicFile(path(), AtomicFile::TemporaryName::kFixed), UsageError);
  out.write("new");
  out.commit();
  EXPECT_EQ(contents(), "new");
  EXPECT_EQ(files(), 1u);
}

TEST_F(AtomicFileTest, MoveKeepsOneOwner) {
  AtomicFile a(path());
  a.write("x");
  AtomicFile b = std::move(a);
  b.commit();
  EXPECT_EQ(contents(), "x");
}

TEST_F(AtomicFileTest, MissingFolderNamesTheFile) {
  try {
    AtomicFile out(folder_ + "/no/f");
    FAIL();
  } catch (const DeviceError& e) {
    EXPECT_NE(std::string(e.what()).find("/no/f"), std::string::npos) << e.what();
  }
}

TEST_F(AtomicFileTest, RenameFailureIsReportedAndCleansUp) {
  fs::create_directory(path());
  std::ofstream(path() + "/inside") << "x";
  {
    AtomicFile out(path());
    out.write("x");
    EXPECT_THROW(out.commit(), DeviceError);
  }
  EXPECT_EQ(files(), 1u);
  EXPECT_TRUE(fs::is_directory(path()));
}

// Runs body in a child process; its exit code, or -1 if a signal ended it.
template <typename Body>
int in_child(Body body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// A file size limit stands in for a full disk: write() stores what fits and then fails.
TEST_F(AtomicFileTest, EveryPointAtWhichTheDiskIsFull) {
  const std::string old = "the old contents", fresh(1000, 'n');
  for (size_t limit = 0; limit <= fresh.size() + 1; limit += 13) {
    write_file_atomically(path(), old);
    const int code = in_child([&] {
      ::signal(SIGXFSZ, SIG_IGN);
      const struct rlimit cap = {limit, limit};
      if (::setrlimit(RLIMIT_FSIZE, &cap) != 0) return 9;
      try {
        AtomicFile out(path());
        for (size_t i = 0; i < fresh.size(); i += 100) out.write(fresh.substr(i, 100));
        out.commit();
        return 0;
      } catch (const DeviceError& e) {
        return std::string(e.what()).find(path()) == std::string::npos ? 8 : 3;
      }
    });
    ASSERT_EQ(code, limit < fresh.size() ? 3 : 0) << limit;
    EXPECT_EQ(contents(), limit < fresh.size() ? old : fresh) << limit;
    EXPECT_EQ(files(), 1u) << limit;
  }
}

// A kill leaves either the old file or the new one under the name, never a part of it.
TEST_F(AtomicFileTest, KilledAtAnyTime) {
  const std::string old(1 << 16, 'o'), fresh(1 << 16, 'n');
  int seen_new = 0;
  // On a busy machine the first rename comes late.
  for (int i = 0; i < 60 || (seen_new == 0 && i < 1000); ++i) {
    write_file_atomically(path(), old);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      while (true) {
        AtomicFile out(path(), AtomicFile::TemporaryName::kFixed);
        for (size_t at = 0; at < fresh.size(); at += 4096) out.write(fresh.substr(at, 4096));
        out.commit();
      }
    }
    ::usleep(static_cast<useconds_t>(100 * i));
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    const std::string now = contents();
    ASSERT_TRUE(now == old || now == fresh) << i;
    seen_new += now == fresh;
  }
  EXPECT_GT(seen_new, 0);  // the sweep reached past the first rename
}

}  // namespace
}  // namespace tamis
