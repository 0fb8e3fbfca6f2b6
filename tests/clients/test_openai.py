"""The official openai client and lm-evaluation-harness against the server, as they come."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import openai

from tests.serving import CHAT, ROOT, Serving

MESSAGES = [{"role": "user", "content": "hello"}]


class OpenAI(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Serving(CHAT)
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.stop()
        cls.server.file.close()

    def test_chat(self):
        ask = dict(model="chat", messages=MESSAGES, max_tokens=12, seed=3)
        whole = self.client.chat.completions.create(**ask, n=2, logprobs=True, top_logprobs=2)
        self.assertEqual(len(whole.choices), 2)
        self.assertEqual(len(whole.choices[0].logprobs.content[0].top_logprobs), 2)
        chunks = list(self.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens + chunks[-1].usage.prompt_tokens, chunks[-1].usage.total_tokens)

    def test_completions(self):
        a = self.client.completions.create(model="chat", prompt=["One", "Two"], max_tokens=3, echo=True, logprobs=2, seed=1)
        self.assertTrue(a.choices[1].text.startswith("Two"))
        self.assertIsNone(a.choices[0].logprobs.token_logprobs[0])

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["chat"])
        self.assertEqual(self.client.models.retrieve("chat").object, "model")

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as e:
            self.client.chat.completions.create(model="gpt-4", messages=MESSAGES)
        self.assertEqual(e.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as e:
            self.client.chat.completions.create(model="chat", messages=[])
        self.assertEqual(e.exception.param, "messages")


class Harness(unittest.TestCase):
    def test_local_completions(self):
        """A multiple-choice task on local JSON, scored through /tokenizer_info, /tokenize and echo."""
        with tempfile.TemporaryDirectory() as folder, Serving(CHAT) as s:
            data, out = os.path.join(folder, "d.jsonl"), os.path.join(folder, "out")
            with open(data, "w") as f:
                for q, good in (("One plus one is", 0), ("The sky is", 1), ("A dog can", 0)):
                    f.write(json.dumps({"q": q, "choices": [" two", " blue"], "a": good}) + "\n")
            with open(os.path.join(folder, "local.yaml"), "w") as f:
                f.write(f"task: local\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
                        "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
                        "doc_to_target: '{{a}}'\nmetric_list: [{metric: acc}]\n")
            run = subprocess.run(
                [os.path.join(os.path.dirname(sys.executable), "lm_eval"), "--model", "local-completions", "--model_args",
                 f"model=chat,base_url={s.url}/v1/completions,tokenizer_backend=remote,num_concurrent=2", "--batch_size", "2",
                 "--tasks", "local", "--include_path", folder, "--output_path", out],
                capture_output=True, text=True, cwd=folder, timeout=300,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": os.path.join(folder, "hf"), "OPENAI_API_KEY": "none"})
            self.assertEqual(run.returncode, 0, run.stderr[-2000:])
            self.assertIn("acc", run.stdout)
            self.assertIn("POST /v1/completions", s.log())


if __name__ == "__main__":
    unittest.main()
