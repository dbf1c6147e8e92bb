// tamis serve: an HTTP server with OpenAI's API.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <memory>
#include <thread>

#include "base/atomic_file.h"
#include "base/error.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/speculation_flags.h"
#include "cli/support.h"
#include "engine/engine.h"
#include "engine/prefix_file.h"
#include "engine/prompt_scorer.h"
#include "server/app.h"
#include "server/engine_thread.h"
#include "server/http_server.h"

namespace tamis::cli {
namespace {

using std::chrono::milliseconds;

struct ServeFlags {
  ModelFlags model;
  SpeculationFlags speculation;
  server::HttpOptions http;
  std::string api_key_file, model_name, chat_format;
  std::vector<std::string> hosts, origins;
  int64_t max_context = 0, max_sequences = 64, max_requests = 256, chunk = 512, cache_tokens = 0;
  int64_t drain_s = 30;
  double recall_sample = 0;
  std::string prefix_file;
  int64_t prefix_file_bytes = int64_t{4} << 30;
  bool no_prefix_cache = false, no_access_log = false;
};

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0;
}

server::AppOptions app_options(const ServeFlags& f) {
  server::AppOptions o;
  if (!f.api_key_file.empty()) o.access.keys = server::read_key_file(f.api_key_file);
  const bool loopback = is_loopback(f.http.host);
  if (!loopback && o.access.keys.empty()) {
    throw UsageError("--host " + printable(f.http.host) +
                     ": whoever reaches this address could use the model; give --api-key-file");
  }
  o.access.hosts = f.hosts;
  o.access.origins = f.origins;
  // Elsewhere the machine goes by names that only the user knows.
  o.access.check_host = loopback || !f.hosts.empty();
  o.version = TAMIS_VERSION;
  o.max_requests = f.max_requests;
  o.access_log = !f.no_access_log;
  return o;
}

EngineOptions engine_options(const ServeFlags& f, const ModelConfig& config) {
  EngineOptions o;
  o.policy = f.model.policy(config);
  o.cache = f.model.cache_options();
  o.chunk = f.chunk;
  o.max_sequences = f.max_sequences;
  o.prefix_cache = !f.no_prefix_cache;
  o.recall_sample = f.recall_sample;
  f.speculation.apply(o);
  o.max_context = config.max_position;
  if (f.max_context > 0) o.max_context = std::min(o.max_context, f.max_context);
  // Room for a few whole contexts; the machine gives memory when a page is first written.
  const int64_t tokens = f.cache_tokens > 0 ? f.cache_tokens : 4 * o.max_context;
  o.cache.pages = pages_for(std::max(tokens, o.max_context)) + 1;
  return o;
}

// Every stream is a file descriptor.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

std::optional<ChatFormat> chat_format(const ServeFlags& f, const LoadedModel& model) {
  if (!f.chat_format.empty()) return parse_chat_format(f.chat_format);
  try {
    return detect_chat_format(model.checkpoint().folder());
  } catch (const InputError& e) {
    std::fprintf(stderr, "tamis serve: no chat: %s\n", e.what());
    return std::nullopt;
  }
}

std::string name_of(const ServeFlags& f) {
  if (!f.model_name.empty()) return f.model_name;
  const std::filesystem::path folder = std::filesystem::path(f.model.folder).lexically_normal();
  return folder.has_filename() ? folder.filename().string()
                               : folder.parent_path().filename().string();
}

// The file of kept prefixes; without a path, none.
PrefixFile prefix_file(const ServeFlags& f, const server::AppOptions& o, const LoadedModel& model,
                       const CacheOptions& cache) {
  if (f.prefix_file.empty()) return {};
  // Tenants are numbered by their place among the keys.
  // What the prefixes' bits depend on, beside what prefix_maker() looks at.
  std::string more = f.model.backend + '\n' + f.model.gemm + '\n' +
                     std::to_string(model.model().options().expand_below) + '\n';
  for (const std::string& key : o.access.keys) more += key + '\n';
  return {f.prefix_file, prefix_maker(model, cache, more), f.prefix_file_bytes};
}

// The model and all that runs on it.
struct Service {
  Service(const ServeFlags& f, const server::AppOptions& app_options, server::App& app)
      : context(f.model.make_context()), model(f.model.load(f.speculation.on())) {
    if (model->group().size() > 1) throw UsageError("serve: one rank only");
    auto tokenizer = load_tokenizer(f.model.folder);
    if (!tokenizer) throw InputError(f.model.folder + ": no tokenizer.json");
    const EngineOptions options = engine_options(f, model->config());
    f.model.place(*context, *model);
    engine = std::make_unique<Engine>(*model, *context, options);
    scorer = std::make_unique<PromptScorer>(*model, *context, options);
    prefixes = prefix_file(f, app_options, *model, options.cache);
    load_prefixes();
    served = std::make_unique<server::ServedModel>(server::ServedModel{
        *model, std::move(*tokenizer), chat_format(f, *model),
        read_generation_defaults(model->checkpoint(), model->config()), name_of(f), options.policy,
        engine->max_context(), static_cast<int64_t>(std::time(nullptr))});
    thread = std::make_unique<server::EngineThread>(*engine, scorer.get(), app.metrics());
    app.serve(*served, *thread);
  }

  void load_prefixes() {
    if (prefixes.path.empty()) return;
    const PrefixLoad loaded = engine->load_prefixes(prefixes);
    if (!loaded.trouble.empty()) {
      std::fprintf(stderr, "tamis serve: %s: %s; what it lacks is computed again\n",
                   printable(prefixes.path).c_str(), loaded.trouble.c_str());
    }
    std::fprintf(stderr, "tamis serve: %lld pages of kept prefixes from %s\n",
                 static_cast<long long>(loaded.pages), printable(prefixes.path).c_str());
  }
  // After the thread has stopped.
  void save_prefixes() {
    if (!prefixes.path.empty()) engine->save_prefixes(prefixes);
  }

  std::unique_ptr<KernelContext> context;
  std::unique_ptr<LoadedModel> model;
  PrefixFile prefixes;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<PromptScorer> scorer;
  std::unique_ptr<server::ServedModel> served;
  std::unique_ptr<server::EngineThread> thread;
};

// Said before the server starts, not when it stops and has much to keep.
void check_prefix_file(const std::string& path) {
  std::error_code none;
  if (std::filesystem::is_directory(path, none)) {
    throw InputError("--prefix-cache-file: " + printable(path) + " is a folder; name a file in it");
  }
  try {
    const AtomicFile written_at_the_end(path, AtomicFile::TemporaryName::kFixed);
  } catch (const DeviceError& error) {
    throw InputError(std::string("--prefix-cache-file: ") + error.what());
  }
}

int run_serve(const ServeFlags& f) {
  const server::AppOptions options = app_options(f);
  if (f.no_prefix_cache && !f.prefix_file.empty()) {
    throw UsageError("--prefix-cache-file: there is nothing to keep with --no-prefix-cache");
  }
  if (!f.prefix_file.empty()) check_prefix_file(f.prefix_file);
  std::signal(SIGPIPE, SIG_IGN);
  raise_descriptor_limit();
  server::App app(options);
  server::HttpServer http(f.http, app);
  std::unique_ptr<Service> service;
  std::exception_ptr failed;
  // The port answers "loading" while the model is read.
  std::thread loader([&] {
    try {
      service = std::make_unique<Service>(f, options, app);
      std::fprintf(stderr, "tamis serve: %s on http%s://%s:%d/v1, context %lld\n",
                   service->served->name.c_str(), f.http.tls_certificate.empty() ? "" : "s",
                   f.http.host.c_str(), http.port(),
                   static_cast<long long>(service->served->max_context));
    } catch (...) {
      failed = std::current_exception();
      http.stop();
    }
  });
  http.run(/*signals=*/true, milliseconds(f.drain_s * 1000), [&] { app.begin_drain(); });
  loader.join();
  app.stop();
  if (service) service->thread->stop();
  if (service) service->save_prefixes();
  if (failed) std::rethrow_exception(failed);
  if (service) f.model.explain(*service->context);
  return 0;
}

void add_http_flags(CLI::App& c, ServeFlags& f) {
  c.add_option("--host", f.http.host, "Address to listen on")->capture_default_str();
  c.add_option("--port", f.http.port, "Port; 0 takes a free one")->capture_default_str();
  c.add_option("--api-key-file", f.api_key_file,
               "A file with one key a line; needed when others can reach the address");
  c.add_option("--allowed-host", f.hosts, "A further name in Host (several times); * for any");
  c.add_option("--cors-origin", f.origins, "A site whose pages may use the server (several times)");
  c.add_option("--tls-certificate", f.http.tls_certificate, "PEM file; serves HTTPS");
  c.add_option("--tls-key", f.http.tls_key, "PEM file of the certificate's key");
  c.add_option("--http-threads", f.http.threads, "Threads for connections")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  c.add_option("--max-connections", f.http.max_connections, "Connections at most")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c.add_option("--max-body", f.http.limits.body_bytes, "Bytes of a request's body at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->capture_default_str();
  c.add_option("--drain", f.drain_s, "Seconds that running requests get after SIGTERM")
      ->check(CLI::Range(0, 86'400))
      ->capture_default_str();
  c.add_flag("--no-access-log", f.no_access_log, "No line for each request on stderr");
}

void add_engine_flags(CLI::App& c, ServeFlags& f) {
  c.add_option("--model-name", f.model_name, "The name in the API; default the folder's");
  c.add_option("--chat-format", f.chat_format,
               "v3.1, v3.1-plain, v3.2-exp or v3.2; default what the checkpoint tells");
  c.add_option("-c,--max-context", f.max_context,
               "Tokens of prompt and answer; default the model's")
      ->check(CLI::Range(2, 1 << 30));
  c.add_option("--cache-tokens", f.cache_tokens,
               "Tokens that the cache holds, all requests together; default four contexts")
      ->check(CLI::Range(1, 1 << 30));
  c.add_option("--max-sequences", f.max_sequences, "Answers written at the same time")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  c.add_option("--max-requests", f.max_requests, "Requests running and waiting; more get 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c.add_option("--chunk", f.chunk, "Tokens of one forward pass")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c.add_option("--recall-sample", f.recall_sample,
               "Part of the tokens, 0 to 1, whose selection is compared with dense attention")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  f.speculation.add_to(c);
  c.add_flag("--no-prefix-cache", f.no_prefix_cache, "Read every prompt from its start");
  c.add_option("--prefix-cache-file", f.prefix_file,
               "Keep read prefixes here when the server stops, for the next start");
  c.add_option("--prefix-cache-file-bytes", f.prefix_file_bytes, "Bytes of that file at most")
      ->check(CLI::Range(int64_t{1}, INT64_MAX))
      ->capture_default_str();
}

}  // namespace

void add_serve(CLI::App& app, CommandBody& chosen) {
  const auto f = std::make_shared<ServeFlags>();
  CLI::App* c = app.add_subcommand("serve", "Serve the model over HTTP with OpenAI's API");
  add_http_flags(*c, *f);
  add_engine_flags(*c, *f);
  f->model.add_to(*c);
  c->footer(
      "Examples:\n"
      "  tamis serve -m models/tamis-mini\n"
      "  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"stream\": true}'\n"
      "  tamis serve --config tamis.toml --print-config\n"
      "  tamis serve -m DIR --host 0.0.0.0 --api-key-file keys.txt --tls-certificate c.pem "
      "--tls-key k.pem");
  c->callback([f, &chosen] { chosen = [f] { return run_serve(*f); }; });
}

}  // namespace tamis::cli
