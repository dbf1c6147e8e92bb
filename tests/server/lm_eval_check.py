"""lm-evaluation-harness against `tamis serve`: lm_eval_check.py TAMIS SOURCE_DIR

Needs `pip install "lm_eval[api]" transformers` (no torch, no network afterwards). Runs three small
local tasks with local-completions (choices by log-likelihood, rolling log-likelihood, generation)
and one with local-chat-completions, and compares each sample with what the API itself answers.
"""

import json
import math
import os
import sys
import tempfile
import unittest
import urllib.request
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OPENAI_API_KEY", "none")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from served import MODEL, ServedTest  # noqa: E402

QUESTIONS = [
    {"text": "The package manager of Debian is called", "choices": ["apt", "a tree"], "gold": 0},
    {"text": "A directory holds", "choices": ["rain", "files"], "gold": 1},
    {"text": "To install a package, run", "choices": ["the command", "blue"], "gold": 0},
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{text}}}}"
{more}
"""
KINDS = {
    "choices": ("multiple_choice", 'doc_to_choice: "{{choices}}"\ndoc_to_target: gold'),
    "rolling": ("loglikelihood_rolling", 'doc_to_target: "{{text}}"\nmetric_list:\n'
                "  - metric: word_perplexity\n  - metric: bits_per_byte"),
    "writing": ("generate_until", 'doc_to_target: "{{choices[gold]}}"\ngeneration_kwargs:\n'
                '  until: ["."]\n  max_gen_toks: 12\n  do_sample: false\n'
                "metric_list:\n  - metric: exact_match"),
}


class LmEval(ServedTest):
    @classmethod
    def connect(cls, url):
        return url

    def post(self, path, **body):
        request = urllib.request.Request(
            self.client + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def evaluate(self, model, path, names, **more):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "questions.jsonl"
            data.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
            for name in names:
                kind, rest = KINDS[name]
                text = TASK.format(name=name, data=data, kind=kind, more=rest)
                (Path(folder) / f"{name}.yaml").write_text(text)
            return lm_eval.simple_evaluate(
                model=model,
                model_args={"model": "tamis-mini", "base_url": self.client + path, **more},
                tasks=list(names),
                task_manager=TaskManager(include_path=folder, include_defaults=False),
                apply_chat_template="chat" in model,
                bootstrap_iters=0,
            )["samples"]

    def logprobs(self, ids):
        choice = self.post("/v1/completions", prompt=ids, max_tokens=0, echo=True, logprobs=1,
                           temperature=0)["choices"][0]
        return choice["logprobs"]["token_logprobs"]

    def ids(self, text):
        return self.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]

    def test_completions(self):
        samples = self.evaluate("local-completions", "/v1/completions", KINDS,
                                tokenizer=str(MODEL), num_concurrent=3, max_length=512)
        for sample in samples["choices"]:
            doc = sample["doc"]
            context = self.ids(doc["text"])
            for choice, got in zip(doc["choices"], sample["filtered_resps"]):
                whole = self.ids(doc["text"] + " " + choice)
                self.assertEqual(whole[: len(context)], context)
                want = sum(self.logprobs(whole)[len(context):])
                self.assertAlmostEqual(float(got[0]), want, places=4)
        for sample in samples["rolling"]:
            bits = sample["bits_per_byte"]
            self.assertTrue(math.isfinite(bits[0]) and bits[0] < 0, bits)
        for sample in samples["writing"]:
            want = self.post("/v1/completions", prompt=sample["doc"]["text"], max_tokens=12,
                             temperature=0, stop=["."], add_special_tokens=False)
            self.assertEqual(sample["filtered_resps"][0], want["choices"][0]["text"])

    def test_chat(self):
        samples = self.evaluate("local-chat-completions", "/v1/chat/completions", ["writing"],
                                num_concurrent=3)
        for sample in samples["writing"]:
            want = self.post("/v1/chat/completions", max_tokens=12, temperature=0, stop=["."],
                             messages=[{"role": "user", "content": sample["doc"]["text"]}])
            self.assertEqual(sample["filtered_resps"][0],
                             want["choices"][0]["message"]["content"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
