#!/usr/bin/env python3
"""Anthropic's client against /v1/messages: messages_clients_test.py TAMIS SOURCE_DIR"""

import sys
import unittest

import anthropic
import openai

from served import ServedTest

WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "strict": True,
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1,
                                                                     "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
# The client has no field for the temperature any more; the server has.
ASK = dict(model="tamis-mini", max_tokens=24, extra_body={"temperature": 0},
           messages=[{"role": "user", "content": "What does the package manager do?"}])


class Messages(ServedTest):
    FLAGS = ("--chat-format", "v3.1")

    @staticmethod
    def connect(url):
        return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)

    def test_the_text_is_that_of_the_chat_api(self):
        chat = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none")
        for system in (None, "Be brief."):
            before = [{"role": "system", "content": system}] if system else []
            other = chat.chat.completions.create(
                model="tamis-mini", messages=before + ASK["messages"], max_tokens=24, temperature=0
            )
            more = {"system": [{"type": "text", "text": system}]} if system else {}
            message = self.client.messages.create(**ASK, **more)
            self.assertEqual(message.content[0].text, other.choices[0].message.content)
            self.assertEqual(message.role, "assistant")
            self.assertEqual(message.stop_reason,
                             {"length": "max_tokens", "stop": "end_turn"}[other.choices[0].finish_reason])
            usage = message.usage
            self.assertEqual(usage.input_tokens + usage.cache_read_input_tokens,
                             other.usage.prompt_tokens)
            self.assertEqual(usage.output_tokens, other.usage.completion_tokens)

    def test_counting_gives_the_tokens_of_the_prompt(self):
        with_tools = dict(messages=ASK["messages"], system="Be brief.", tools=[WEATHER])
        count = self.client.messages.count_tokens(model="tamis-mini", **with_tools)
        message = self.client.messages.create(model="tamis-mini", max_tokens=1, **with_tools)
        self.assertEqual(count.input_tokens,
                         message.usage.input_tokens + message.usage.cache_read_input_tokens)

    def test_a_stream_holds_the_same_message(self):
        for more in ({}, {"thinking": {"type": "enabled", "budget_tokens": 1024}},
                     {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 120}):
            ask = {**ASK, **more}
            if "thinking" in more:
                ask["extra_body"] = {"temperature": 1, "seed": 3}
            whole = self.client.messages.create(**ask)
            with self.client.messages.stream(**ask) as stream:
                kinds = [event.type for event in stream]
                final = stream.get_final_message()
            self.assertEqual(kinds[0], "message_start")
            self.assertEqual(kinds[-1], "message_stop")
            self.assertEqual(final.stop_reason, whole.stop_reason)
            self.assertEqual([strip(b) for b in final.content], [strip(b) for b in whole.content])
            self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)

    def test_thinking(self):
        message = self.client.messages.create(
            **ASK, thinking={"type": "enabled", "budget_tokens": 1024}
        )
        self.assertEqual(message.content[0].type, "thinking")
        self.assertTrue(message.content[0].thinking)
        off = self.client.messages.create(**ASK, thinking={"type": "disabled"})
        self.assertEqual(off.content[0].type, "text")

    def test_tools_are_called_and_their_results_are_read(self):
        ask = {**ASK, "max_tokens": 120, "extra_body": {"temperature": 1}, "tools": [WEATHER]}
        for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
            message = self.client.messages.create(
                **ask, tool_choice={**choice, "disable_parallel_tool_use": True}
            )
            self.assertEqual(message.stop_reason, "tool_use")
            [call] = message.content
            self.assertEqual(call.name, "weather")
            self.assertIn(call.input["city"], ("Oslo", "Rome"))
            self.assertIn(call.input["days"], range(1, 10))
        turn = [
            *ASK["messages"],
            {"role": "assistant", "content": message.content},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call.id,
                 "content": [{"type": "text", "text": "sun"}]},
                {"type": "text", "text": "And tomorrow?"},
            ]},
        ]
        answer = self.client.messages.create(**{**ask, "messages": turn, "max_tokens": 4})
        self.assertGreater(answer.usage.output_tokens, 0)

    def test_an_answer_that_was_begun_is_continued(self):
        begun = [*ASK["messages"], {"role": "assistant", "content": "The package"}]
        rest = self.client.messages.create(**{**ASK, "messages": begun})
        chat = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none")
        other = chat.chat.completions.create(
            model="tamis-mini", messages=[*begun[:-1], {**begun[-1], "prefix": True}],
            max_tokens=24, temperature=0,
        )
        self.assertEqual(rest.content[0].text, other.choices[0].message.content)

    def test_a_stop_sequence_is_told(self):
        text = self.client.messages.create(**ASK).content[0].text
        word = text[len(text) // 2 :][:2]
        message = self.client.messages.create(**ASK, stop_sequences=["never", word])
        self.assertEqual(message.stop_reason, "stop_sequence")
        self.assertEqual(message.stop_sequence, word)
        self.assertEqual(message.content[0].text, text[: text.index(word)])

    def test_a_schema_is_followed(self):
        message = self.client.messages.create(
            **{**ASK, "max_tokens": 100, "extra_body": {"temperature": 1, "output_config": {
                "format": {"type": "json_schema", "schema": WEATHER["input_schema"]}}}},
        )
        self.assertRegex(message.content[0].text, r'^\{\s*"city": ?"(Oslo|Rome)",\s*"days": ?\d\s*\}$')

    def test_errors_have_their_form(self):
        with self.assertRaises(anthropic.BadRequestError) as caught:
            self.client.messages.create(**{**ASK, "max_tokens": 5000})
        self.assertEqual(caught.exception.body["error"]["type"], "invalid_request_error")
        with self.assertRaises(anthropic.NotFoundError):
            self.client.messages.create(**{**ASK, "model": "other"})
        for wrong in (
            {"messages": []},
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            {"messages": [{"role": "robot", "content": "x"}]},
            {"extra_body": {"mcp_servers": []}},
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        ):
            with self.subTest(wrong=wrong), self.assertRaises(anthropic.BadRequestError):
                self.client.messages.create(**{**ASK, **wrong})


def strip(block):
    """A block without what is new each time."""
    return {k: v for k, v in block.model_dump().items() if k not in ("id", "caller", "citations")}


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
