#!/usr/bin/env python3
"""Each rule finds a violation planted for it, and lets the right form pass."""
import unittest

import lint

# rule -> (tree with violations, number of them)
PLANTED = {
    'include_direction': ({
        'src/base/a.cpp': '#include "tensor/tensor.h"\n',
        'src/kernels/b.cpp': '#include "comm/group.h"\n',
        'src/model/c.cpp': '#include "../engine/engine.h"\n#include "engine/engine.h"\n',
        'src/attic/d.cpp': '\n',
    }, 5),
    'header_places': ({
        'src/model/config.h': '#include <nlohmann/json.hpp>\n',
        'src/engine/a.cpp': '#include <CLI/CLI.hpp>\n#include <mpi.h>\n#include <spdlog/spdlog.h>\n',
        'src/model/b.cpp': '#include <cuda_runtime.h>\n#include <hwy/highway.h>\n',
        'src/base/c.cpp': '#include <regex>\n#include <gtest/gtest.h>\n',
    }, 8),
    'banned_constructs': ({
        'src/text/a.cpp': 'std::regex r;\nauto* p = alloca(n);\nstrcpy(a, b);\nsprintf(a, b);\n',
        'src/cli/b.cpp': 'system("ls");\nFILE* f = popen(c, "r");\ndlopen(p, 0);\nexit(1);\n'
                         'std::abort();\n',
        'src/engine/c.cpp': '// TODO later\n#if defined(TAMIS_CUDA)\nusing namespace std;\n',
        'src/text/d_test.cpp': 'GTEST_SKIP();\nTEST(A, DISABLED_b) {}\n',
    }, 14),
    'header_form': ({
        'src/base/a.h': '#include <string>\n',
        'src/base/b.h': '// Purpose.\n#pragma once\nusing namespace tamis;\n',
    }, 3),
    'file_sizes': ({'src/base/a.cpp': '\n' * (lint.MAX_LINES + 1)}, 1),
    'words': ({'docs/a.md': 'see ../scratch/x\n', 'README.md': '`/home/joe/x`, /root/y\n'}, 2),
    'documents': ({
        'README.md': '[a](docs/none.md)\n',
        'models/documents/needle-4k.txt': 'one text\n',
        'models/documents/question.json': '[{"role": "user", "content": "another text"}]',
    }, 2),
    'changelog': ({'CMakeLists.txt': 'project(tamis VERSION 2.0.0)', 'CHANGELOG.md': '## 1.0.0\n'},
                  1),
}

CLEAN = {
    'CMakeLists.txt': 'project(tamis VERSION 1.0.0)',
    'CHANGELOG.md': '# Changes\n\n## 1.0.0\n',
    'README.md': '[a](docs/a.md) [b](https://example.org) [c](docs)\n',
    'docs/a.md': 'nothing\n',
    'src/base/a.h': '// Purpose.\n#pragma once\n#include <string>\n',
    'src/comm/mpi.cpp': '#include <mpi.h>\n#include "base/a.h"\n#include "comm/group.h"\n',
    'src/cli/x.cpp': '#include <CLI/CLI.hpp>\n#include "model/config.h"\nreturn app.exit(e);\n'
                     'const char* s = "system(1) alloca(2)";  // never std::regex, never exit()\n'
                     "int n = 1'000; obj->abort(); long_exit(3); set.system(2);\n",
}


class Rules(unittest.TestCase):
    def run_rule(self, name, tree):
        rule = lint.RULES[name]
        return rule(tree, {}) if name == 'file_sizes' else rule(tree)

    def test_planted_violations_are_found(self):
        for name, (tree, expected) in PLANTED.items():
            with self.subTest(rule=name):
                found = self.run_rule(name, tree)
                self.assertEqual(len(found), expected, '\n'.join(found))

    def test_clean_tree_passes(self):
        for name in lint.RULES:
            with self.subTest(rule=name):
                self.assertEqual(self.run_rule(name, CLEAN), [])

    def test_every_rule_has_a_planted_violation(self):
        self.assertEqual(set(PLANTED), set(lint.RULES))

    def test_sizes_of_the_tree(self):
        self.assertEqual(len(lint.file_sizes({}, {'models/a': lint.MAX_TREE_BYTES + 1})), 1)
        self.assertEqual(len(lint.file_sizes({}, {'tests/golden/a': lint.MAX_GOLDEN_BYTES + 1})), 1)
        self.assertEqual(lint.file_sizes({}, {'tests/golden/a': lint.MAX_GOLDEN_BYTES}), [])

    def test_exceptions_of_words(self):
        self.assertEqual(lint.words({'.ci/run': '../scratch/fixtures'}), [])


if __name__ == '__main__':
    unittest.main()
