// A header that relies on what was included before it: the test that compiles headers alone must
// find it.
#pragma once

std::string planted();
