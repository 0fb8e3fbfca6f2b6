"""EleutherAI's lm-eval (local-completions, remote tokenizer) drives `linnet serve`, unchanged; what it
computes from the server's log-probabilities equals what `linnet logits` gives."""
import glob
import json
import os
import subprocess
import sys
import tempfile
import unittest

import numpy as np

from tests.serving import CHAT, LINNET, Serving

QUESTIONS = [("The cat sat on the", [" mat", " moon", " seven"], 0),
             ("Two and two are", [" four", " blue", " birds"], 0),
             ("Once upon a", [" time", " table", " of"], 0),
             ("The sun is", [" hot", " a fish", " under the sea"], 0)]
CHOICE = """task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""
WRITE = """task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 8, temperature: 0.0}
metric_list: [{metric: exact_match}]
"""


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class LmEval(unittest.TestCase):
    def ids(self, text):
        line = json.dumps({"text": text})
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
            f.write(line + "\n")
            f.flush()
            out = subprocess.run([LINNET, "tokenize", CHAT, "--no-bos", "--lines", f.name],
                                 capture_output=True, text=True, check=True).stdout
        return [int(i) for i in out.split()]

    def score(self, folder, question, choice):
        """log p(choice | question), from the logits of the engine's command."""
        before, whole = self.ids(question), self.ids(question + choice)
        ids, out = os.path.join(folder, "ids"), os.path.join(folder, "logits.npy")
        with open(ids, "w") as f:
            f.write(" ".join(map(str, whole)))
        subprocess.run([LINNET, "logits", CHAT, "--ids", ids, "-o", out, "--quiet"], check=True)
        rows = log_softmax(np.load(out))
        return sum(rows[t - 1, whole[t]] for t in range(len(before), len(whole)))

    def test_scores_and_answers(self):
        with tempfile.TemporaryDirectory() as folder, \
                Serving(CHAT, "--slots", "4", "--activations", "exact") as server:
            data = os.path.join(folder, "test.jsonl")
            with open(data, "w") as f:
                for question, choices, answer in QUESTIONS:
                    f.write(json.dumps({"question": question, "choices": choices, "answer": answer}) + "\n")
            for name, text in (("choice", CHOICE), ("write", WRITE)):
                with open(os.path.join(folder, f"{name}.yaml"), "w") as f:
                    f.write(text % data)
            out = os.path.join(folder, "out")
            r = subprocess.run(
                [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args",
                 f"base_url={server.url}/v1/completions,model=chat,tokenizer_backend=remote,"
                 "num_concurrent=2,max_retries=1,tokenized_requests=True,max_length=128",
                 "--tasks", "local_choice,local_write", "--include_path", folder, "--batch_size", "2",
                 "--output_path", out, "--log_samples"],
                capture_output=True, text=True, timeout=600,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
                     "HF_HOME": os.path.join(folder, "hf"), "OPENAI_API_KEY": "none"})
            self.assertEqual(r.returncode, 0, r.stdout[-3000:] + r.stderr[-3000:])
            samples, = glob.glob(os.path.join(out, "**", "samples_local_choice_*.jsonl"), recursive=True)
            with open(samples) as f:
                rows = [json.loads(line) for line in f]
            self.assertEqual(len(rows), len(QUESTIONS))
            for row in rows:
                doc = row["doc"]
                scores = [self.score(folder, doc["question"], c) for c in doc["choices"]]
                for theirs, ours in zip(row["filtered_resps"], scores):
                    self.assertAlmostEqual(float(theirs[0]), ours, delta=2e-3)
                self.assertEqual(row["acc"], float(np.argmax(scores) == doc["answer"]))
            self.assertTrue(glob.glob(os.path.join(out, "**", "samples_local_write_*.jsonl"), recursive=True))


if __name__ == "__main__":
    unittest.main()
