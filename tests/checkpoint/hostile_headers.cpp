#include "checkpoint/hostile_headers.h"

#include <cstdint>

namespace tamis {
namespace {

std::string length_prefix(uint64_t n) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(n >> (8 * i) & 0xFF);
  return text;
}

// A file of one tensor with these three JSON values.
std::string one(std::string_view dtype, std::string_view shape, std::string_view offsets,
                size_t data) {
  std::string json = R"({"t":{"dtype":)";
  json += dtype;
  json += R"(,"shape":)";
  json += shape;
  json += R"(,"data_offsets":)";
  json += offsets;
  return safetensors_file(json + "}}", data);
}

std::string named(const std::string& name) {
  return safetensors_file("{\"" + name + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                          1);
}

std::string with_metadata(const std::string& value) {
  return safetensors_file(
      "{\"__metadata__\":" + value + R"(,"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
}

void add_sizes(std::vector<HostileFile>& out) {
  out.push_back(
      {"ld1_shape_over_data", one("\"F32\"", "[1000,1000]", "[0,4]", 4), "needs 4000000"});
  out.push_back({"ld2_offsets_past_end", one("\"F32\"", "[1000,1000]", "[0,4000000]", 4),
                 "3999996 bytes are missing"});
  out.push_back({"ld4_size_wraps_64_bits", one("\"I32\"", "[2,18446744073709551614]", "[0,16]", 16),
                 "does not fit in 63 bits"});
  out.push_back({"ld4_product_wraps", one("\"I32\"", "[2,9223372036854775807]", "[0,16]", 16),
                 "more elements than 63 bits"});
  out.push_back({"ld4_bits_wrap", one("\"I32\"", "[2305843009213693952]", "[0,16]", 16),
                 "more bits than 63 bits"});
  const std::string half = "9223372036854775744";  // 0x7FFFFFFFFFFFFFC0
  out.push_back(
      {"ld12_sum_wraps",
       safetensors_file(R"({"a":{"dtype":"I8","shape":[)" + half + R"(],"data_offsets":[0,)" +
                            half + R"(]},"b":{"dtype":"I8","shape":[)" + half +
                            R"(],"data_offsets":[)" + half + ",18446744073709551488]}}",
                        16),
       "bits than 63 bits can count"});
  out.push_back({"ld13_offset_far_away", one("\"U8\"", "[4]", "[1099511627776,1099511627780]", 4),
                 "1099511627776 bytes are missing"});
  out.push_back({"ld14_nine_dimensions", one("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]", 1),
                 "more than 4 dimensions"});
}

void add_lengths(std::vector<HostileFile>& out) {
  const auto raw = [](uint64_t n, const std::string& rest) { return length_prefix(n) + rest; };
  out.push_back({"ld5_length_near_2_64", raw(0xFFFFFF000000003C, "{}"), "18446742974197923900"});
  out.push_back({"ld5_length_over_limit", raw(100000001, "{}"), "the limit is 100000000"});
  out.push_back({"ld5_length_over_file", raw(11, "{}"), "a header of 11 bytes in a file of 10"});
  out.push_back({"ld5_no_bytes", "", "0 bytes, a safetensors file has at least 8"});
  out.push_back({"ld5_seven_bytes", std::string(7, '\0'), "7 bytes, a safetensors file has"});
  out.push_back({"ld5_length_0", raw(0, ""), "must begin with '{'"});
  out.push_back({"ld5_not_utf8_alone", raw(1, "\xFF"), "must begin with '{'"});
  out.push_back({"ld5_brace_alone", raw(1, "{"), "the header ends in the middle"});
  out.push_back({"not_utf8", safetensors_file("{\"\xC3\x28\":1}", 0), "not valid UTF-8"});
  out.push_back({"leading_space", safetensors_file(" {}", 0), "must begin with '{'"});
  out.push_back({"two_objects", safetensors_file("{}{}", 0), "text after the header's closing"});
}

void add_cover(std::vector<HostileFile>& out) {
  const std::string valid = one("\"U8\"", "[4]", "[0,4]", 4);
  out.push_back({"ld7_polyglot", valid + "extra_bogus_data_for_polyglot_file",
                 "34 bytes after the last tensor"});
  const std::string a = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
  out.push_back({"ld7_hole",
                 safetensors_file(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})", 9),
                 "1 bytes before tensor \"b\" belong to no tensor"});
  out.push_back({"ld7_first_offset_8", one("\"U8\"", "[4]", "[8,12]", 12),
                 "8 bytes before tensor \"t\" belong to no tensor"});
  out.push_back({"ld6_overlap",
                 safetensors_file(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})", 7),
                 "tensor \"b\" overlaps"});
  out.push_back({"ld6_twice_the_same_bytes",
                 safetensors_file(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4),
                 "overlaps the one before it"});
}

void add_duplicates(std::vector<HostileFile>& out) {
  const std::string entry = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  out.push_back({"ld8_name_twice", safetensors_file("{" + entry + "," + entry + "}", 1),
                 "tensor \"a\" appears twice"});
  out.push_back({"ld8_name_twice_escaped",
                 safetensors_file("{" + entry + R"(,"\u0061":{"dtype":"U8","shape":[0],)" +
                                      R"("data_offsets":[1,1]}})",
                                  1),
                 "tensor \"a\" appears twice"});
  out.push_back(
      {"ld8_shape_twice",
       safetensors_file(R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1),
       "\"shape\" appears twice"});
  out.push_back({"ld8_metadata_twice",
                 safetensors_file(R"({"__metadata__":{},"__metadata__":{}})", 0),
                 "\"__metadata__\" appears twice"});
  out.push_back({"ld8_metadata_key_twice", with_metadata(R"({"k":"1","k":"2"})"),
                 "entry \"k\" appears twice"});
}

void add_metadata_and_names(std::vector<HostileFile>& out) {
  out.push_back(
      {"ld9_metadata_number", with_metadata(R"({"a":1})"), "entry \"a\" is not a string"});
  out.push_back({"ld9_metadata_null", with_metadata("null"), "\"__metadata__\" is not an object"});
  out.push_back(
      {"ld9_metadata_nested", with_metadata(R"({"b":{"c":"d"}})"), "entry \"b\" is not a string"});
  out.push_back({"ld9_name_empty", named(""), "a tensor without a name"});
  out.push_back({"ld9_name_long", named(std::string(1000000, 'x')), "name of 1000000 bytes"});
  out.push_back({"ld9_name_zero_byte", named(R"(a\u0000b)"), "control or text direction"});
  out.push_back({"ld9_name_raw_control", named("a\x01"), "a control character in a string"});
  out.push_back({"ld9_name_path", named("../x"), "the name looks like a path"});
  out.push_back({"ld9_name_inner_path", named("a/../x"), "the name looks like a path"});
  out.push_back({"ld9_name_root", named("/x"), "the name looks like a path"});
  out.push_back({"ld9_name_backslash", named(R"(a\\x)"), "the name looks like a path"});
  out.push_back({"ld9_name_reversed", named("a\xE2\x80\xAE"), "control or text direction"});
  out.push_back({"ld9_name_reversed_escaped", named(R"(a\u202E)"), "control or text direction"});
  out.push_back({"ld9_half_surrogate", named(R"(\ud800)"), "half a surrogate pair"});
  out.push_back({"ld9_wrong_surrogates", named(R"(\ud800\u0041)"), "half a surrogate pair"});
  out.push_back({"ld9_bad_escape", named(R"(\x)"), "an unknown escape"});
  out.push_back({"ld9_bad_hex", named(R"(\u00g0)"), "four hexadecimal digits"});
  out.push_back({"ld9_deep_arrays", safetensors_file("{\"t\":" + std::string(100000, '['), 0),
                 "its entry is not an object"});
  std::string deep = "{";
  for (int i = 0; i < 100000; ++i) deep += "\"a\":{";
  out.push_back({"ld9_deep_objects", safetensors_file(deep, 0), "unknown key \"a\""});
}

void add_fields(std::vector<HostileFile>& out) {
  const std::string u8 = "\"U8\"";
  out.push_back(
      {"ld9_offsets_backwards", one(u8, "[4]", "[4,0]", 4), "data_offsets run backwards"});
  out.push_back({"ld9_offset_negative", one(u8, "[4]", "[-1,3]", 4), "an offset is negative"});
  out.push_back({"ld9_one_offset", one(u8, "[4]", "[0]", 4), "less than two entries"});
  out.push_back({"ld9_three_offsets", one(u8, "[4]", "[0,1,2]", 4), "more than two entries"});
  out.push_back({"ld9_offset_exponent", one(u8, "[1000]", "[0,1e3]", 1000),
                 "an offset is not written as a whole number"});
  out.push_back({"ld9_offset_fraction", one(u8, "[4]", "[0,4.0]", 4),
                 "an offset is not written as a whole number"});
  out.push_back(
      {"ld9_offset_string", one(u8, "[4]", R"(["0",4])", 4), "an offset is not a number"});
  out.push_back({"ld9_offsets_no_array", one(u8, "[4]", "4", 4), "data_offsets is not an array"});
  out.push_back({"ld9_dtype_f8", one("\"F8\"", "[4]", "[0,4]", 4), "unknown dtype \"F8\""});
  out.push_back({"ld9_dtype_empty", one("\"\"", "[4]", "[0,4]", 4), "unknown dtype \"\""});
  out.push_back(
      {"ld9_dtype_number", one("8", "[4]", "[0,4]", 4), "the dtype of tensor \"t\" is not"});
  out.push_back({"shape_negative", one(u8, "[-4]", "[0,4]", 4), "a size in the shape is negative"});
  out.push_back({"shape_no_array", one(u8, "4", "[0,4]", 4), "the shape is not an array"});
  out.push_back({"shape_leading_zero", one(u8, "[04]", "[0,4]", 4), "has a leading zero"});
  out.push_back({"shape_comma_at_end", one(u8, "[4,]", "[0,4]", 4), "a comma before the closing"});
  out.push_back({"shape_no_comma", one(u8, "[2 2]", "[0,4]", 4), "expected ',' between members"});
  out.push_back({"int4_half_byte", one("\"I4\"", "[2,3]", "[0,3]", 3), "do not end on a byte"});
  out.push_back(
      {"unknown_field",
       safetensors_file(R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})", 0),
       "unknown key \"x\""});
  out.push_back({"no_shape", safetensors_file(R"({"t":{"dtype":"U8","data_offsets":[0,0]}})", 0),
                 "tensor \"t\": no shape"});
  out.push_back({"no_dtype", safetensors_file(R"({"t":{"shape":[0],"data_offsets":[0,0]}})", 0),
                 "tensor \"t\": no dtype"});
  out.push_back({"no_offsets", safetensors_file(R"({"t":{"dtype":"U8","shape":[0]}})", 0),
                 "tensor \"t\": no data_offsets"});
  out.push_back({"no_colon", safetensors_file(R"({"t" 1})", 0), "expected ':' after a name"});
  out.push_back({"name_no_string", safetensors_file("{1:2}", 0), "the name of a tensor is not a"});
}

}  // namespace

std::string safetensors_file(std::string_view json, size_t data) {
  return length_prefix(json.size()) + std::string(json) + std::string(data, '\0');
}

std::vector<HostileFile> hostile_files() {
  std::vector<HostileFile> out;
  add_sizes(out);
  add_lengths(out);
  add_cover(out);
  add_duplicates(out);
  add_metadata_and_names(out);
  add_fields(out);
  return out;
}

}  // namespace tamis
