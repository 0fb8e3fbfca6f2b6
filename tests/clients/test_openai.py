"""The official openai client against `linnet serve`, unchanged."""
import json
import math
import tempfile
import unittest

import openai

from tests.serving import CHAT, Serving

SAY = [{"role": "user", "content": "Name three birds."}]


class OpenAIClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Serving()
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0)
        cls.model = cls.client.models.list().data[0].id

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        assert cls.server.stop() == 0
        cls.server.file.close()

    def chat(self, **more):
        return self.client.chat.completions.create(
            model=self.model, messages=more.pop("messages", SAY), temperature=more.pop("temperature", 0),
            max_tokens=more.pop("max_tokens", 12), **more)

    def test_an_answer_and_its_stream_are_the_same(self):
        whole = self.chat()
        self.assertEqual(whole.choices[0].message.role, "assistant")
        self.assertIn(whole.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1],
                         whole.choices[0].finish_reason)
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)

    def test_a_second_turn_computes_its_own_tokens_only(self):
        first = self.chat()
        more = SAY + [{"role": "assistant", "content": first.choices[0].message.content},
                      {"role": "user", "content": "And three more."}]
        second = self.chat(messages=more)
        cached = second.usage.prompt_tokens_details.cached_tokens
        self.assertGreaterEqual(cached, first.usage.prompt_tokens)
        self.assertLess(cached, second.usage.prompt_tokens)

    def test_seeds_choices_and_logprobs(self):
        texts = [self.chat(temperature=1, seed=7).choices[0].message.content for _ in range(2)]
        self.assertEqual(*texts)
        many = self.chat(temperature=1.5, seed=3, n=3)
        self.assertEqual([c.index for c in many.choices], [0, 1, 2])
        self.assertGreater(len({c.message.content for c in many.choices}), 1)
        entries = self.chat(logprobs=True, top_logprobs=4).choices[0].logprobs.content
        for e in entries:
            self.assertEqual(len(e.top_logprobs), 4)
            self.assertAlmostEqual(e.logprob, e.top_logprobs[0].logprob, places=6)
            self.assertLessEqual(sum(math.exp(t.logprob) for t in e.top_logprobs), 1 + 1e-6)

    def test_stop_strings_and_json(self):
        whole = self.chat(max_tokens=24).choices[0].message.content
        stop = whole[len(whole) // 2:][:2]
        cut = self.chat(max_tokens=24, stop=[stop]).choices[0]
        self.assertEqual(cut.message.content, whole[:whole.index(stop)])
        self.assertEqual(cut.finish_reason, "stop")
        value = self.chat(response_format={"type": "json_object"}, max_tokens=300, temperature=1, seed=5)
        if value.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(value.choices[0].message.content), dict)

    def test_legacy_completions_with_echo(self):
        r = self.client.completions.create(model=self.model, prompt="Once upon a time", max_tokens=4,
                                           temperature=0, echo=True, logprobs=2)
        self.assertTrue(r.choices[0].text.startswith("Once upon a time"))
        self.assertEqual(len(r.choices[0].logprobs.tokens), len(r.choices[0].logprobs.token_logprobs))
        self.assertIsNone(r.choices[0].logprobs.token_logprobs[0])

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], [self.model])
        self.assertEqual(self.client.models.retrieve(self.model).object, "model")

    def test_errors_have_their_classes(self):
        with self.assertRaises(openai.NotFoundError) as e:
            self.client.chat.completions.create(model="no-such-model", messages=SAY)
        self.assertEqual(e.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat(temperature=-1)
        self.assertIn("temperature", e.exception.message)
        with self.assertRaises(openai.BadRequestError):
            self.chat(messages=[{"role": "robot", "content": "hi"}])

    def test_keys(self):
        with tempfile.NamedTemporaryFile("w") as f:
            f.write("a-long-enough-key\n")
            f.flush()
            with Serving(CHAT, "--api-key-file", f.name) as s:
                client = openai.OpenAI(base_url=s.url + "/v1", api_key="wrong", max_retries=0)
                with self.assertRaises(openai.AuthenticationError):
                    client.models.list()
                client = openai.OpenAI(base_url=s.url + "/v1", api_key="a-long-enough-key", max_retries=0)
                self.assertEqual(len(client.models.list().data), 1)
                self.assertNotIn("a-long-enough-key", s.log())
                self.assertNotIn("wrong", s.log())


if __name__ == "__main__":
    unittest.main()
