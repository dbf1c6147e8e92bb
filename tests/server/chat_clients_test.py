#!/usr/bin/env python3
"""The official clients against a live server: chat_clients_test.py TAMIS SOURCE_DIR"""

import json
import subprocess
import sys
import tempfile
import unittest
import urllib.request

import openai

from served import MODEL, TAMIS, ServedTest, Server

QUESTION = [{"role": "user", "content": "What does the package manager do?"}]


def generate(*arguments):
    done = subprocess.run(
        [TAMIS, "generate", "-m", MODEL, "--json", *map(str, arguments)],
        capture_output=True, text=True, check=True, timeout=120,
    )
    return json.loads(done.stdout)


class OpenAi(ServedTest):
    @staticmethod
    def connect(url):
        return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["tamis-mini"])
        self.assertEqual(self.client.models.retrieve("tamis-mini").id, "tamis-mini")

    def test_chat_is_what_generate_writes(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as f:
            json.dump(QUESTION, f)
            f.flush()
            alone = generate("--chat", f.name, "-n", 24, "--logprobs", 3)
        chat = self.client.chat.completions.create(
            model="tamis-mini", messages=QUESTION, max_tokens=24, logprobs=True, top_logprobs=3
        )
        choice = chat.choices[0]
        self.assertEqual(choice.message.content, alone["text"])
        self.assertEqual(choice.finish_reason, alone["finish_reason"])
        self.assertEqual(chat.usage.prompt_tokens, len(alone["prompt_ids"]))
        self.assertEqual(chat.usage.completion_tokens, len(alone["ids"]))
        wrote = [t.logprob for t in choice.logprobs.content]
        told = [t["logprob"] for t in alone["logprobs"]]
        self.assertEqual(wrote, told[: len(wrote)])
        for ours, theirs in zip(choice.logprobs.content, alone["logprobs"]):
            self.assertEqual(
                [t.logprob for t in ours.top_logprobs], [t["logprob"] for t in theirs["top"]]
            )

    def test_a_stream_holds_the_same_text(self):
        ask = dict(model="tamis-mini", messages=QUESTION, max_tokens=24, temperature=0.8, seed=7)
        whole = self.client.chat.completions.create(**ask)
        stream = list(
            self.client.chat.completions.create(
                **ask, stream=True, stream_options={"include_usage": True}
            )
        )
        self.assertEqual(stream[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(
            [c.choices[0].finish_reason for c in stream if c.choices][-1],
            whole.choices[0].finish_reason,
        )
        self.assertEqual(stream[-1].choices, [])
        self.assertEqual(stream[-1].usage.completion_tokens, whole.usage.completion_tokens)

    def test_several_answers(self):
        chat = self.client.chat.completions.create(
            model="tamis-mini", messages=QUESTION, max_tokens=8, n=3, temperature=1.2, seed=5
        )
        self.assertEqual([c.index for c in chat.choices], [0, 1, 2])
        self.assertGreater(len({c.message.content for c in chat.choices}), 1)

    def test_thinking(self):
        for how in (
            {"reasoning_effort": "high"},
            {"extra_body": {"thinking": {"type": "enabled"}}},
            {"extra_body": {"enable_thinking": True}},
            {"extra_body": {"chat_template_kwargs": {"thinking": True}}},
        ):
            with self.subTest(how=how):
                chat = self.client.chat.completions.create(
                    model="tamis-mini", messages=QUESTION, max_tokens=12, **how
                )
                message = chat.choices[0].message
                self.assertTrue(message.reasoning_content)
                self.assertEqual(message.reasoning_content, message.reasoning)
                self.assertGreater(chat.usage.completion_tokens_details.reasoning_tokens, 0)

    def test_completion_with_echo_and_logprobs(self):
        ids = generate("--prompt", "The package manager", "-n", 1)["prompt_ids"]
        done = self.client.completions.create(
            model="tamis-mini", prompt=ids, max_tokens=1, echo=True, logprobs=2
        )
        choice = done.choices[0]
        self.assertTrue(choice.text.startswith("The package manager"))
        self.assertEqual(len(choice.logprobs.tokens), len(ids) + 1)
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        for value, top in list(zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs))[1:]:
            self.assertLessEqual(value, max(top.values()))
        # The tokens that the prompt has, scored again as an answer would be, have the same value.
        for cut in (1, 2):
            forced = self.client.completions.create(
                model="tamis-mini", prompt=ids[:cut], max_tokens=1, logprobs=0,
                logit_bias={str(ids[cut]): 100},
            )
            self.assertEqual(
                forced.choices[0].logprobs.token_logprobs[0], choice.logprobs.token_logprobs[cut]
            )

    def test_a_second_turn_reads_the_first_from_the_cache(self):
        long = [{"role": "user", "content": "Tell me of apt. " * 40}]
        first = self.client.chat.completions.create(
            model="tamis-mini", messages=long, max_tokens=8
        )
        again = self.client.chat.completions.create(
            model="tamis-mini", messages=long, max_tokens=8
        )
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 64)
        self.assertEqual(again.choices[0].message.content, first.choices[0].message.content)

    def test_errors_name_the_field(self):
        for field, more in {
            "temperature": {"temperature": -1},
            "max_tokens": {"max_tokens": 5000},
            "n": {"n": 1000},
            "messages": {"messages": []},
        }.items():
            with self.subTest(field=field):
                ask = {"model": "tamis-mini", "messages": QUESTION, "max_tokens": 4, **more}
                with self.assertRaises(openai.BadRequestError) as caught:
                    self.client.chat.completions.create(**ask)
                self.assertEqual(caught.exception.param, field)
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="other", messages=QUESTION)


class Keys(unittest.TestCase):
    def test_a_key_is_needed_everywhere_but_for_health(self):
        with tempfile.NamedTemporaryFile("w") as f:
            f.write("# a comment\nsecret-key-1\nsecret-key-2\n")
            f.flush()
            server = Server("--api-key-file", f.name)
        urllib.request.urlopen(server.url + "/health").read()
        for key, good in {"secret-key-2": True, "secret-key-3": False, "x": False}.items():
            client = openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)
            if good:
                self.assertEqual(len(list(client.models.list())), 1)
            else:
                with self.assertRaises(openai.AuthenticationError):
                    client.models.list()
        self.assertEqual(server.stop(), 0)
        self.assertNotIn("secret-key", server.log)

    def test_a_wide_address_without_a_key_is_refused(self):
        done = subprocess.run(
            [TAMIS, "serve", "-m", MODEL, "--host", "0.0.0.0", "--port", "0"],
            capture_output=True, text=True, timeout=60,
        )
        self.assertEqual(done.returncode, 2)
        self.assertIn("--api-key-file", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
