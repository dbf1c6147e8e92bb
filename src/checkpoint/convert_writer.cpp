#include "checkpoint/convert_writer.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "checkpoint/checksum.h"
#include "checkpoint/quantise.h"

namespace tamis {
namespace {

constexpr size_t kBuffer = size_t{4} << 20;
constexpr int64_t kCheckEvery = int64_t{64} << 20;

class UnitWriter {
 public:
  UnitWriter(const ConvertContext& context, const std::string& path, const ConvertFile& file)
      : context_(context),
        specs_(file.specs()),
        out_(path, specs_, file.metadata, AtomicFile::TemporaryName::kFixed) {
    const std::string header = make_safetensors_header(specs_, file.metadata);
    checksum_.update(std::as_bytes(std::span(header)));
    result_.bytes = static_cast<int64_t>(header.size()) + out_.data_bytes();
    buffer_.reserve(kBuffer);
    context_.source->check_unchanged();
  }

  void write(const ConvertUnit& unit) {
    if (unit.make) {
      const RoundingError error =
          unit.make(*context_.pool, [this](std::span<const std::byte> bytes) { put(bytes); });
      if (error.tensors > 0) result_.errors[unit.kind].add(error);
    } else if (unit.weight.empty()) {
      copy(unit);
    } else {
      quantise(unit);
    }
  }

  ConvertRecord::File finish() {
    flush();
    out_.commit();
    result_.checksum = checksum_.hex();
    return std::move(result_);
  }

 private:
  void copy(const ConvertUnit& unit) {
    if (unit.side_by_side) {
      for (int64_t row = 0; row < unit.pieces.front().rows; ++row) {
        for (const CopyPiece& piece : unit.pieces) put(row_of(piece, row));
      }
      return;
    }
    for (const CopyPiece& piece : unit.pieces) {
      for (int64_t row = 0; row < piece.rows; ++row) put(row_of(piece, row));
    }
  }

  static std::span<const std::byte> row_of(const CopyPiece& piece, int64_t row) {
    return {piece.data + row * piece.stride, static_cast<size_t>(piece.row_bytes)};
  }

  void quantise(const ConvertUnit& unit) {
    const StoredWeight weight(*context_.source->checkpoint, unit.weight);
    const RoundingError error =
        requantise(weight, {unit.format, context_.options->power_of_two_scales}, *context_.pool,
                   [this](std::span<const std::byte> bytes) { put(bytes); });
    result_.errors[unit.kind].add(error);
  }

  // Small pieces are gathered, large ones go through in steps, for the sake of progress.
  void put(std::span<const std::byte> bytes) {
    if (bytes.size() <= kBuffer - buffer_.size()) {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
      return;
    }
    flush();
    for (size_t done = 0; done < bytes.size(); done += kBuffer) {
      emit(bytes.subspan(done, std::min(kBuffer, bytes.size() - done)));
    }
  }

  void flush() {
    emit(buffer_);
    buffer_.clear();
  }

  void emit(std::span<const std::byte> bytes) {
    out_.append(bytes);
    checksum_.update(bytes);
    const int64_t count = static_cast<int64_t>(bytes.size());
    since_check_ += count;
    if (since_check_ > kCheckEvery) {
      context_.source->check_unchanged();
      since_check_ = 0;
    }
    if (context_.wrote) context_.wrote(count);
  }

  const ConvertContext& context_;
  const std::vector<TensorSpec> specs_;
  SafetensorsWriter out_;
  Checksum checksum_;
  std::vector<std::byte> buffer_;
  ConvertRecord::File result_;
  int64_t since_check_ = 0;
};

}  // namespace

ConvertRecord::File write_convert_file(const ConvertContext& context, const std::string& folder,
                                       const ConvertFile& file) {
  UnitWriter writer(context, folder + "/" + file.name, file);
  for (const ConvertUnit& unit : file.units) writer.write(unit);
  return writer.finish();
}

}  // namespace tamis
