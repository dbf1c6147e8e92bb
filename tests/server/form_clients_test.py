#!/usr/bin/env python3
"""Answers of a given form, through OpenAI's client: form_clients_test.py TAMIS SOURCE_DIR"""

import json
import re
import sys
import unittest
from typing import Literal

import openai
import pydantic

from served import ServedTest

ASK = dict(model="tamis-mini", messages=[{"role": "user", "content": "Where to?"}], max_tokens=160)
END_OF_THOUGHT = {"8182": 100}


class Trip(pydantic.BaseModel):
    city: Literal["Oslo", "Rome"]
    days: int = pydantic.Field(ge=1, le=14)
    notes: list[Literal["rain", "sun"]] = pydantic.Field(max_length=3)


class Form(ServedTest):
    FLAGS = ("--chat-format", "v3.1")

    @staticmethod
    def connect(url):
        return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)

    def test_parse_gives_the_declared_type(self):
        for more in ({}, {"reasoning_effort": "high", "logit_bias": END_OF_THOUGHT}):
            for seed in range(3):
                done = self.client.chat.completions.parse(
                    **ASK, response_format=Trip, temperature=1, seed=seed, **more
                )
                self.assertIsInstance(done.choices[0].message.parsed, Trip)

    def test_a_stream_of_the_same_type(self):
        with self.client.chat.completions.stream(
            **ASK, response_format=Trip, temperature=1, seed=4
        ) as stream:
            for _ in stream:
                pass
            done = stream.get_final_completion()
        self.assertIsInstance(done.choices[0].message.parsed, Trip)

    def test_json_mode(self):
        done = self.client.chat.completions.create(
            **ASK, response_format={"type": "json_object"}, temperature=0
        )
        text = done.choices[0].message.content
        if done.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(text), dict)
        self.assertEqual(text[0], "{")

    def test_expressions_and_choices_as_other_servers_name_them(self):
        for extra, pattern in (
            ({"guided_regex": "v[0-9]+\\.[0-9]"}, r"v[0-9]+\.[0-9]"),
            ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
            ({"guided_choice": ["(yes)", "no"]}, r"\(yes\)|no"),
        ):
            with self.subTest(extra=extra):
                done = self.client.chat.completions.create(
                    **ASK, temperature=1, seed=1, extra_body=extra
                )
                self.assertTrue(re.fullmatch(pattern, done.choices[0].message.content))

    def test_tools_are_called_as_declared(self):
        tools = [openai.pydantic_function_tool(Trip, name="book")]
        tools.append({"type": "function", "function": {"name": "other", "parameters": {}}})
        for choice in ("required", {"type": "function", "function": {"name": "book"}}):
            done = self.client.chat.completions.parse(
                **ASK, tools=tools[:1], tool_choice=choice, parallel_tool_calls=False,
                temperature=1, seed=2,
            )
            call = done.choices[0].message.tool_calls[0]
            self.assertEqual(done.choices[0].finish_reason, "tool_calls")
            self.assertIsInstance(call.function.parsed_arguments, Trip)
            self.assertFalse(done.choices[0].message.content)
        none = self.client.chat.completions.create(**ASK, tools=tools, tool_choice="none")
        self.assertIsNone(none.choices[0].message.tool_calls)

    def test_an_unknown_keyword_is_named(self):
        schema = {"type": "object", "properties": {}, "dependentRequired": {}}
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(
                **ASK,
                response_format={
                    "type": "json_schema", "json_schema": {"name": "x", "schema": schema}
                },
            )
        self.assertIn("dependentRequired", caught.exception.message)
        self.assertEqual(caught.exception.param, "response_format.json_schema.schema")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
