// What an answer read of its context, through the API: the same streamed or not.
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "server/live.h"

namespace tamis::server {
namespace {

TEST(SelectionLive, TellsWhatEachTokenRead) {
  Live live;
  const std::string common =
      R"("messages":[{"role":"user","content":"What is apt?"}],"max_tokens":6,"temperature":0,"ignore_eos":true)";
  const auto chat = [&](const std::string& more) {
    return ask(live, "/v1/chat/completions", "{" + common + more + "}");
  };
  const Json plain = parse_json(body_of(chat("")), "answer");
  const Json told = parse_json(body_of(chat(R"(,"return_selection":4)")), "answer");
  const Json& choice = told["choices"][0];
  EXPECT_EQ(choice["message"], plain["choices"][0]["message"]);
  EXPECT_FALSE(plain["choices"][0].contains("selection"));
  const Json& selection = choice["selection"];
  ASSERT_EQ(selection.size(), 6U);
  const auto prompt = told["usage"]["prompt_tokens"].get<int64_t>();
  for (size_t i = 0; i < selection.size(); ++i) {
    EXPECT_EQ(selection[i]["position"], prompt + static_cast<int64_t>(i));
    ASSERT_EQ(selection[i]["read"].size(), 4U);
    for (const Json& r : selection[i]["read"]) {
      EXPECT_LT(r["position"], selection[i]["position"]);
      EXPECT_GT(r["layers"].size(), 1U);
      EXPECT_EQ(r["dense"].size(), r["layers"].size());
      for (const Json& share : r["layers"]) EXPECT_TRUE(share >= 0 && share <= 1) << share;
      for (const Json& share : r["dense"]) EXPECT_TRUE(share >= 0 && share <= 1) << share;
    }
    ASSERT_EQ(selection[i]["kept"].size(), selection[i]["read"][0]["layers"].size());
    for (const Json& kept : selection[i]["kept"]) EXPECT_TRUE(kept > 0 && kept <= 1) << kept;
  }
  Json streamed = Json::array();
  for (const std::string& data : events_of(chat(R"(,"return_selection":4,"stream":true)"))) {
    if (data == "[DONE]") break;
    const Json c = parse_json(data, "event")["choices"][0];
    if (!c.contains("selection")) continue;
    for (const Json& token : c["selection"]) streamed.push_back(token);
  }
  EXPECT_EQ(streamed, selection);
  const Json completion =
      parse_json(body_of(ask(live, "/v1/completions",
                             R"({"prompt":"The package","max_tokens":3,"return_selection":true})")),
                 "answer");
  EXPECT_EQ(completion["choices"][0]["selection"].size(), 3U);
  for (const char* wrong : {R"(,"return_selection":65)", R"(,"return_selection":"yes")"}) {
    EXPECT_EQ(status_of(chat(wrong)), 400);
  }
  EXPECT_TRUE(live.settles());
}

TEST(SelectionLive, MetricsShowRecallWhereItIsSampled) {
  Live live({}, {}, std::nullopt, /*recall_sample=*/1);
  ask(live, "/v1/completions", R"({"prompt":"The package","max_tokens":5,"ignore_eos":true})");
  ASSERT_TRUE(live.settles());
  Socket s(live);
  s.send(get("/metrics", kClose));
  const std::string page = s.read_all();
  EXPECT_NE(page.find("tamis:recall_sampled_tokens_total 5\n"), std::string::npos) << page;
  EXPECT_NE(page.find("tamis:attention_kept_mass{layer=\"0\"} "), std::string::npos);
  EXPECT_NE(page.find("\ntamis:indexer_seconds_total "), std::string::npos);
  EXPECT_NE(page.find("tamis:selection_lookback_tokens_bucket{le=\"+Inf\"} "), std::string::npos);
}

}  // namespace
}  // namespace tamis::server
