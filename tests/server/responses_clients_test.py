#!/usr/bin/env python3
"""OpenAI's client against /v1/responses: responses_clients_test.py TAMIS SOURCE_DIR"""

import json
import sys
import unittest
from typing import Literal

import openai
import pydantic

from served import ServedTest

TOOL = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASK = dict(model="tamis-mini", input="What does the package manager do?", max_output_tokens=24,
           temperature=0)


class Trip(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]


class Responses(ServedTest):
    FLAGS = ("--chat-format", "v3.1")

    @staticmethod
    def connect(url):
        return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)

    def test_the_text_is_that_of_the_chat_api(self):
        chat = self.client.chat.completions.create(
            model="tamis-mini", max_tokens=24, temperature=0,
            messages=[{"role": "system", "content": "Be brief."},
                      {"role": "user", "content": ASK["input"]}],
        )
        for ask in (
            {"instructions": "Be brief."},
            {"input": [{"role": "system", "content": "Be brief."},
                       {"role": "user", "content": [{"type": "input_text", "text": ASK["input"]}]}]},
        ):
            response = self.client.responses.create(**{**ASK, **ask})
            self.assertEqual(response.output_text, chat.choices[0].message.content)
            self.assertEqual(response.usage.input_tokens, chat.usage.prompt_tokens)
            self.assertEqual(response.usage.output_tokens, chat.usage.completion_tokens)
            whole = chat.choices[0].finish_reason == "stop"
            self.assertEqual(response.status, "completed" if whole else "incomplete")

    def test_a_stream_builds_the_same_response(self):
        for more in ({}, {"reasoning": {"effort": "high"}},
                     {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 100,
                      "parallel_tool_calls": False},
                     {"include": ["message.output_text.logprobs"], "top_logprobs": 2}):
            with self.subTest(more=more):
                whole = self.client.responses.create(**{**ASK, **more})
                events = list(self.client.responses.create(**{**ASK, **more}, stream=True))
                self.assertEqual([e.sequence_number for e in events], list(range(len(events))))
                self.assertEqual(events[0].type, "response.created")
                self.assertIn(events[-1].type, ("response.completed", "response.incomplete"))
                final = events[-1].response
                self.assertEqual(strip(final.output), strip(whole.output))
                self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
                done = [e.item for e in events if e.type == "response.output_item.done"]
                self.assertEqual(strip(done), strip(whole.output))
                text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
                self.assertEqual(text, whole.output_text)
                with self.client.responses.stream(**{**ASK, **more}) as stream:
                    kinds = [event.type for event in stream]
                self.assertEqual(kinds, [e.type for e in events])

    def test_thoughts_are_items(self):
        response = self.client.responses.create(**ASK, reasoning={"effort": "low"})
        self.assertEqual(response.output[0].type, "reasoning")
        self.assertTrue(response.output[0].content[0].text)
        self.assertGreater(response.usage.output_tokens_details.reasoning_tokens, 0)

    def test_tools_are_called_and_their_results_are_read(self):
        ask = {**ASK, "tools": [TOOL], "max_output_tokens": 100}
        for choice in ("required", {"type": "function", "name": "weather"},
                       {"type": "allowed_tools", "mode": "required",
                        "tools": [{"type": "function", "name": "weather"}]}):
            response = self.client.responses.create(
                **{**ask, "temperature": 1}, tool_choice=choice, parallel_tool_calls=False
            )
            [call] = response.output
            self.assertEqual(call.type, "function_call")
            self.assertIn(json.loads(call.arguments)["city"], ("Oslo", "Rome"))
        history = [
            {"role": "user", "content": ASK["input"]},
            *response.output,
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
        ]
        again = self.client.responses.create(**{**ask, "input": history, "max_output_tokens": 4})
        self.assertGreater(again.usage.output_tokens, 0)

    def test_parse_gives_the_declared_type(self):
        response = self.client.responses.parse(
            **{**ASK, "max_output_tokens": 80, "temperature": 1}, text_format=Trip
        )
        self.assertIsInstance(response.output_parsed, Trip)

    def test_what_needs_a_stored_response_is_refused(self):
        for field, more in {
            "previous_response_id": {"previous_response_id": "resp_1"},
            "background": {"background": True},
            "tools[0].type": {"tools": [{"type": "web_search"}]},
            "max_output_tokens": {"max_output_tokens": 100000},
            "input[0].type": {"input": [{"type": "item_reference", "id": "x"}]},
        }.items():
            with self.subTest(field=field), self.assertRaises(openai.BadRequestError) as caught:
                self.client.responses.create(**{**ASK, **more})
            self.assertEqual(caught.exception.param, field)


def strip(items):
    """Items without what is new each time."""
    out = []
    for item in items:
        one = item.model_dump(exclude_none=True)
        one.pop("id", None)
        one.pop("call_id", None)
        for part in one.get("content") or []:
            if not part.get("logprobs"):
                part.pop("logprobs", None)
        out.append(one)
    return out


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
