#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include "base/error.h"
#include "comm/group.h"

namespace tamis {
namespace {

template <typename T>
std::span<std::byte> bytes_of(std::vector<T>& values) {
  return std::as_writable_bytes(std::span(values));
}

// On 1 to 5 ranks as threads, and in the group of one.
void on_all_groups(FunctionRef<void(Group&)> body) {
  const auto single = single_group();
  body(*single);
  for (int ranks = 1; ranks <= 5; ++ranks) run_as_threads(ranks, body);
}

float value(int rank, size_t index) {
  const auto mixed =
      static_cast<uint32_t>(index * 7919 + static_cast<size_t>(rank) * 104729 + 1) * 2654435761u;
  return std::ldexp(static_cast<float>(static_cast<int32_t>(mixed)), static_cast<int>(mixed % 40));
}

std::vector<float> values(int rank, size_t count) {
  std::vector<float> result(count);
  for (size_t i = 0; i < count; ++i) result[i] = value(rank, i);
  return result;
}

float sum_in_rank_order(int ranks, size_t index) {
  float sum = value(0, index);
  for (int r = 1; r < ranks; ++r) sum += value(r, index);
  return sum;
}

void expect_bits(float got, float want) {
  ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want));
}

const std::vector<size_t> kSizes = {0, 1, 3, 97, 1024, 1025, 4096, 4097, 4099, 100003};

TEST(Group, AllReduceIsTheSumInRankOrder) {
  on_all_groups([](Group& group) {
    for (size_t count : kSizes) {
      std::vector<float> data = values(group.rank(), count);
      group.all_reduce(data);
      for (size_t i = 0; i < count; ++i) expect_bits(data[i], sum_in_rank_order(group.size(), i));
    }
  });
}

TEST(Group, AllReduceOfMoreThanABlock) {
  const size_t count = (size_t{1} << 22) + 5;
  run_as_threads(3, [&](Group& group) {
    std::vector<float> data = values(group.rank(), count);
    group.all_reduce(data);
    for (size_t i = 0; i < count; ++i) expect_bits(data[i], sum_in_rank_order(3, i));
  });
}

TEST(Group, AllReduceKeepsInfinitiesNansAndSignedZeros) {
  run_as_threads(3, [](Group& group) {
    std::vector<float> data = {-0.0f, INFINITY, group.rank() == 1 ? NAN : 1.0f, 1e38f * 3};
    group.all_reduce(data);
    expect_bits(data[0], -0.0f);
    EXPECT_EQ(data[1], INFINITY);
    EXPECT_TRUE(std::isnan(data[2]));
    EXPECT_EQ(data[3], INFINITY);
  });
}

TEST(Group, AllReducePropertyAnyValuesAnySize) {
  const bool holds = rc::check("all_reduce equals the sum in rank order", [] {
    const int ranks = *rc::gen::inRange(1, 6);
    const auto count = static_cast<size_t>(*rc::gen::inRange(0, 9000));
    const auto seed = *rc::gen::inRange(0, 1000);
    std::vector<std::vector<float>> results(static_cast<size_t>(ranks));
    run_as_threads(ranks, [&](Group& group) {
      std::vector<float> data = values(group.rank() + seed, count);
      group.all_reduce(data);
      results[static_cast<size_t>(group.rank())] = std::move(data);
    });
    for (size_t i = 0; i < count; ++i) {
      float want = value(seed, i);
      for (int r = 1; r < ranks; ++r) want += value(r + seed, i);
      for (const auto& result : results) {
        RC_ASSERT(std::bit_cast<uint32_t>(result[i]) == std::bit_cast<uint32_t>(want));
      }
    }
  });
  EXPECT_TRUE(holds);
}

TEST(Group, ReduceScatterGivesEachRankItsPart) {
  on_all_groups([](Group& group) {
    for (size_t count : kSizes) {
      const auto ranks = static_cast<size_t>(group.size());
      std::vector<float> out(count);
      group.reduce_scatter(values(group.rank(), count * ranks), out);
      const size_t begin = count * static_cast<size_t>(group.rank());
      for (size_t i = 0; i < count; ++i) {
        expect_bits(out[i], sum_in_rank_order(group.size(), begin + i));
      }
    }
  });
}

TEST(Group, AllGatherKeepsRankOrder) {
  on_all_groups([](Group& group) {
    for (size_t count : kSizes) {
      std::vector<float> all(count * static_cast<size_t>(group.size()));
      group.all_gather(values(group.rank(), count), all);
      for (size_t i = 0; i < all.size(); ++i) {
        expect_bits(all[i], value(static_cast<int>(i / count), i % count));
      }
    }
  });
}

// The bytes that rank `from` sends to rank `to`: as many and such as only that pair has.
std::vector<std::byte> parcel(int from, int to, size_t unit) {
  const auto pair = static_cast<size_t>(from * 10 + to);
  return std::vector<std::byte>(unit * pair, static_cast<std::byte>(pair));
}

TEST(Group, AllToAllWithAnotherSizeForEachPair) {
  on_all_groups([](Group& group) {
    for (size_t unit : {0, 1, 97}) {
      std::vector<std::vector<std::byte>> out, in;
      std::vector<std::span<const std::byte>> to;
      std::vector<std::span<std::byte>> from;
      for (int r = 0; r < group.size(); ++r) {
        out.push_back(parcel(group.rank(), r, unit));
        in.emplace_back(parcel(r, group.rank(), unit).size());
        to.push_back(out.back());
        from.push_back(in.back());
      }
      group.all_to_all(to, from);
      for (int r = 0; r < group.size(); ++r) {
        EXPECT_EQ(in[static_cast<size_t>(r)], parcel(r, group.rank(), unit));
      }
    }
  });
}

TEST(Group, BroadcastFromEachRoot) {
  on_all_groups([](Group& group) {
    for (int root = 0; root < group.size(); ++root) {
      for (size_t count : kSizes) {
        std::vector<float> data = values(group.rank(), count);
        group.broadcast(bytes_of(data), root);
        EXPECT_EQ(data, values(root, count));
      }
    }
  });
}

TEST(Group, MessagesArriveInOrder) {
  run_as_threads(5, [](Group& group) {
    for (int round = 0; round < 20; ++round) {
      std::vector<int> data = {group.rank(), round};
      if (group.rank() % 2 == 0 && group.rank() + 1 < group.size()) {
        group.send(bytes_of(data), group.rank() + 1);
      } else if (group.rank() % 2 == 1) {
        group.recv(bytes_of(data), group.rank() - 1);
        EXPECT_EQ(data, (std::vector<int>{group.rank() - 1, round}));
      }
    }
  });
}

TEST(Group, SplitKeepsRankOrderAndPartsWorkAtTheSameTime) {
  run_as_threads(5, [](Group& group) {
    const auto part = group.split(group.rank() % 2 == 0 ? -7 : 3);
    EXPECT_EQ(part->size(), group.rank() % 2 == 0 ? 3 : 2);
    EXPECT_EQ(part->rank(), group.rank() / 2);
    float sum = static_cast<float>(1 << group.rank());
    for (int round = 0; round < 3; ++round) {
      std::vector<float> data = {sum};
      part->all_reduce(data);
      EXPECT_EQ(data[0], group.rank() % 2 == 0 ? 1 + 4 + 16 : 2 + 8);
    }
    const auto alone = part->split(part->rank());
    EXPECT_EQ(alone->size(), 1);
    alone->barrier();
    group.barrier();
  });
}

TEST(Group, RefusesSizesAndRanksThatCannotBe) {
  on_all_groups([](Group& group) {
    std::vector<float> one(1), many(static_cast<size_t>(group.size()) + 1);
    EXPECT_THROW(group.all_gather(one, many), UsageError);
    EXPECT_THROW(group.reduce_scatter(many, one), UsageError);
    EXPECT_THROW(group.broadcast(bytes_of(one), group.size()), UsageError);
    EXPECT_THROW(group.broadcast(bytes_of(one), -1), UsageError);
    EXPECT_THROW(group.send(bytes_of(one), group.size()), UsageError);
    EXPECT_THROW(group.send(bytes_of(one), group.rank()), UsageError);
    EXPECT_THROW(group.recv(bytes_of(one), group.rank()), UsageError);
    EXPECT_THROW(group.all_to_all({}, {}), UsageError);
  });
  EXPECT_THROW(run_as_threads(0, [](Group&) {}), UsageError);
}

// What run_as_threads throws, as text; "" when it does not throw.
template <typename Error>
std::string failure(int ranks, FunctionRef<void(Group&)> body) {
  try {
    run_as_threads(ranks, body);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_contains(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(message.find(part), std::string::npos) << "no '" << part << "' in: " << message;
  }
}

TEST(RanksAsThreads, AnExceptionReachesTheCallerAndFreesTheOthers) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    for (int culprit = 0; culprit < ranks; ++culprit) {
      std::mutex mutex;
      int freed = 0;
      const std::string message = failure<std::out_of_range>(ranks, [&](Group& group) {
        group.barrier();
        if (group.rank() == culprit) throw std::out_of_range("on purpose");
        try {
          group.barrier();
        } catch (const DeviceError& error) {
          const std::lock_guard lock(mutex);
          ++freed;
          expect_contains(error.what(), {"rank " + std::to_string(culprit), "on purpose"});
          throw;
        }
      });
      EXPECT_EQ(message, "on purpose");
      EXPECT_EQ(freed, ranks - 1);
    }
  }
}

TEST(RanksAsThreads, AnExceptionFreesRanksInPartsAndMessages) {
  const std::string message = failure<std::runtime_error>(4, [](Group& group) {
    std::vector<float> data(1);
    const auto part = group.split(group.rank() / 2);
    if (group.rank() == 3) throw std::runtime_error("on purpose");
    if (group.rank() == 0) group.recv(bytes_of(data), 1);
    if (group.rank() == 1) group.send(bytes_of(data), 3);
    part->barrier();
  });
  EXPECT_EQ(message, "on purpose");
}

TEST(RanksAsThreads, AbandonFreesTheOthers) {
  expect_contains(failure<DeviceError>(3,
                                       [](Group& group) {
                                         if (group.rank() == 2) {
                                           group.abandon(7);
                                         } else {
                                           group.barrier();
                                         }
                                       }),
                  {"rank 2", "exit code 7"});
}

TEST(RanksAsThreads, ManyFailuresNeverHang) {
  for (int round = 0; round < 300; ++round) {
    const std::string message = failure<std::runtime_error>(4, [&](Group& group) {
      for (int call = 0;; ++call) {
        if (group.rank() == round % 4 && call == round % 7) throw std::runtime_error("on purpose");
        std::vector<float> data(static_cast<size_t>(round * 20 + 1));
        group.all_reduce(data);
      }
    });
    EXPECT_EQ(message, "on purpose");
  }
}

TEST(Mismatch, AnotherSize) {
  for (size_t count : {1, 5000}) {
    const std::string message = failure<UsageError>(3, [&](Group& group) {
      group.barrier();
      std::vector<float> data(count + (group.rank() == 1 ? 1 : 0));
      group.all_reduce(data);
    });
    expect_contains(message, {"rank 1 is in call 2, all_reduce of " + std::to_string(count * 4 + 4),
                              "call 2, all_reduce of " + std::to_string(count * 4) + " bytes"});
  }
}

TEST(Mismatch, AnotherCall) {
  const std::string message = failure<UsageError>(3, [](Group& group) {
    std::vector<float> data(1);
    if (group.rank() == 2) {
      group.broadcast(bytes_of(data), 0);
    } else {
      group.all_reduce(data);
    }
  });
  expect_contains(message, {"rank 2 is in call 1, broadcast of 4 bytes from rank 0",
                            "call 1, all_reduce of 4 bytes"});
}

TEST(Mismatch, AnotherRoot) {
  const std::string message = failure<UsageError>(2, [](Group& group) {
    std::vector<float> data(1);
    group.broadcast(bytes_of(data), group.rank());
  });
  expect_contains(message, {"from rank 0", "from rank 1"});
}

TEST(Mismatch, AllToAllPairThatDisagrees) {
  const std::string message = failure<UsageError>(2, [](Group& group) {
    std::vector<std::byte> sent(3), received(group.rank() == 1 ? 4 : 3);
    std::vector<std::span<const std::byte>> to(2);
    std::vector<std::span<std::byte>> from(2);
    to[static_cast<size_t>(1 - group.rank())] = sent;
    from[static_cast<size_t>(1 - group.rank())] = received;
    group.all_to_all(to, from);
    group.barrier();
  });
  expect_contains(message,
                  {"rank 1 in call 1, all_to_all: wants 4 bytes from rank 0, which sends 3"});
}

TEST(Mismatch, MessageOfAnotherSize) {
  const std::string message = failure<UsageError>(2, [](Group& group) {
    std::vector<float> data(group.rank() == 0 ? 1 : 2);
    if (group.rank() == 0) group.send(bytes_of(data), 1);
    if (group.rank() == 1) group.recv(bytes_of(data), 0);
  });
  expect_contains(message, {"rank 1", "wants 8 bytes from rank 0, which sends 4"});
}

TEST(Mismatch, RanksThatWaitForEachOther) {
  const std::string message = failure<UsageError>(3, [](Group& group) {
    std::vector<float> data(1);
    if (group.rank() == 0) group.barrier();
    if (group.rank() == 1) group.recv(bytes_of(data), 0);
  });
  expect_contains(message, {"rank 0 waits in call 1, barrier",
                            "rank 1 waits in recv of 4 bytes from rank 0", "rank 2 has returned"});
}

TEST(World, PlainStartIsTheGroupOfOne) {
  const auto world = world_group();
  EXPECT_EQ(world->size(), 1);
  std::vector<float> data = {2.5f};
  world->all_reduce(data);
  EXPECT_EQ(data[0], 2.5f);
  world->abandon(1);
}

}  // namespace
}  // namespace tamis
