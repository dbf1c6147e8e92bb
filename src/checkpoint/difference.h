// The difference of two models of one shape in a few bits a weight: what `tamis convert
// --difference-from` writes and `--add` reads. docs/formats/difference.md has the layout.
//
//   pack_difference_row(d, n, 2, codes, &scale);     // d [n] -> 2 bits a value and one scale
//   unpack_difference_row(codes, scale, n, 2, back);  // near d
//   scale
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "checkpoint/checkpoint.h"

namespace tamis {

inline constexpr std::string_view kDifferenceName = "difference.safetensors";
inline constexpr int kMaxDifferenceBits = 8;

// Bytes of the codes of a row.
inline int64_t difference_row_bytes(int64_t n, int bits) { return (n * bits + 7) / 8; }

// A code c of `bits` bits (1 to 8) stands for (2c + 1 - 2^bits) * scale: the odd integers around 0.
// Code i of a row lies in its bits i * bits on, lowest bit first; spare bits of the last byte are
// 0.
//
// d [n], finite, to codes [difference_row_bytes] and a scale in BF16 bits. Codes are the nearest
// for the best scale that alternating with least squares finds from four starts; the stored scale
// is sum d^2 / sum q d for the odd integers q of the codes, so that d is not shrunk. A row of zeros
// has scale 0.
void pack_difference_row(const float* d, int64_t n, int bits, uint8_t* codes, uint16_t* scale);

// The products are exact in float.
void unpack_difference_row(const uint8_t* codes, uint16_t scale, int64_t n, int bits, float* d);

// XXH3-128 over name, type, shape and XXH3-128 of the data of all tensors, by name: the same for
// any spread over files. Reads all weights.
std::string weights_checksum(const Checkpoint& checkpoint);

}  // namespace tamis
