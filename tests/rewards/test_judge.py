"""VQAScore and the judge: probabilities of the first word of an answer, from a local model and from an endpoint."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from palate.errors import UserError
from rewards import load_scorer
from rewards.vlm import Question, first_tokens

PROMPTS = ["a red circle", "blue square", "a red circle", "square"]


@pytest.fixture(scope="module")
def vlm(published) -> str:
    return str(published / "vlm")


@torch.no_grad()
def _next(vlm: str, question: str, pictures: list[Image.Image]) -> dict[str, float]:
    """Return the probability of each word to come next: one input at a time, the chat written out, no padding."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, processor = LlavaForConditionalGeneration.from_pretrained(vlm).eval(), AutoProcessor.from_pretrained(vlm)
    text = "USER: " + "<image> " * len(pictures) + question + " ASSISTANT:"
    logits = model(**processor(text=text, images=pictures, return_tensors="pt")).logits[0, -1]
    return {word: float(logits.softmax(-1)[i]) for word, i in processor.tokenizer.get_vocab().items()}


def test_vqascore_is_the_probability_of_yes(vlm, images) -> None:
    golden = [
        _next(vlm, f'Does this figure show "{p}"? Please answer Yes or No.', [i])["Yes"]
        for p, i in zip(PROMPTS, images, strict=False)
    ]
    batch = load_scorer(f"vqascore:{vlm}", device="cpu", batch_size=3).score(PROMPTS, images[:4])
    assert batch.values == pytest.approx(golden, rel=1e-4)
    assert (batch.scorer, batch.unit, batch.failures) == ("vqascore:vlm", "probability", {})
    assert np.ptp(golden) > 1e-4


def test_the_judge_is_the_mean_of_the_digits(vlm, images) -> None:
    """With probabilities p_1..p_5 of the digits: sum of k p_k over sum of p_k."""
    question = "Request: {prompt} 1 2"
    golden = []
    for prompt, image in zip(PROMPTS, images, strict=False):
        found = _next(vlm, question.replace("{prompt}", prompt), [image])
        shares = np.array([found[digit] for digit in "12345"])
        golden.append(float(shares @ np.arange(1, 6) / shares.sum()))
    judge = load_scorer(f"vlm-judge:{vlm}", question=question, least=0, device="cpu")
    batch = judge.score(PROMPTS, images[:4])
    assert batch.values == pytest.approx(golden, rel=1e-4) and batch.unit == "rating"


def test_a_comparison_is_asked_in_both_orders(vlm, images) -> None:
    """P(first) = (P(A | first, second) + P(B | second, first)) / 2, each among A and B."""
    question = "Request: {prompt} A B"
    golden = []
    for prompt, (one, two) in zip(PROMPTS[:3], [(0, 1), (2, 3), (4, 0)], strict=True):
        there = _next(vlm, question.replace("{prompt}", prompt), [images[one], images[two]])
        back = _next(vlm, question.replace("{prompt}", prompt), [images[two], images[one]])
        golden.append((there["A"] / (there["A"] + there["B"]) + back["B"] / (back["A"] + back["B"])) / 2)
    judge = load_scorer(f"vlm-judge:{vlm}", comparison=question, least=0, device="cpu", batch_size=2)
    first, second = [images[0], images[2], images[4]], [images[1], images[3], images[0]]
    batch = judge.prefer(PROMPTS[:3], first, second)
    assert batch.values == pytest.approx(golden, rel=1e-4) and batch.unit == "P(first)"
    assert judge.prefer(PROMPTS[:3], second, first).values == pytest.approx(1 - batch.values, abs=1e-6)
    assert judge.prefer(["a"], images[:1], images[:1]).values == pytest.approx([0.5])


def test_an_answer_that_is_no_verdict_is_a_failure(vlm, images) -> None:
    """A random model spreads its probability over 31 words: five digits have about 5/31."""
    judge = load_scorer(f"vlm-judge:{vlm}", device="cpu")
    batch = judge.score(PROMPTS[:2], images[:2])
    assert np.isnan(batch.values).all()
    assert "1, 2, 3, 4, 5" in batch.failures[0] and "at least 50 % is asked" in batch.failures[0]
    assert np.isnan(judge.prefer(["a"], images[:1], images[1:2]).values).all()


def test_rows_that_cannot_be_asked_leave_the_rest(vlm, images) -> None:
    scorer = load_scorer(f"vqascore:{vlm}", device="cpu")
    batch = scorer.score(["a", "the <image> of a cat", "", "a"], [images[0], images[0], images[0], b"torn"])
    assert batch.ok.tolist() == [True, False, False, False]
    assert "contains <image>, which the model takes for a mark" in batch.failures[1]
    assert batch.values[0] == pytest.approx(scorer.score(["a"], images[:1]).values[0])
    judge = load_scorer(f"vlm-judge:{vlm}", device="cpu", least=0)
    pairs = judge.prefer(["a", "a", " ", "a", "</s>"], [images[0], None, *images[:3]], [b"torn", *images[:4]])
    assert pairs.ok.tolist() == [False, False, False, True, False]
    assert pairs.failures[0].startswith("Second image: ") and pairs.failures[1] == "There is no image."


def test_verdicts_must_begin_differently(vlm, published) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vlm)
    assert len(first_tokens(tokenizer, ["A", "B"], "x")) == 2
    with pytest.raises(UserError, match="begins several of the verdicts unknown, other with the same token"):
        first_tokens(tokenizer, ["unknown", "other"], "x")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vqascore", {}, "Which model"),
        ("vqascore", {"source": "x", "question": "Is it nice?"}, "must say where the prompt goes"),
        ("vlm-judge", {"source": "owner/name"}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_refusals(name, options, message, vlm) -> None:
    options = {**options, "source": vlm} if options.get("source") == "x" else options
    with pytest.raises(UserError, match=message):
        load_scorer(name, device="cpu", **options)


def test_a_clip_is_no_vlm(published) -> None:
    with pytest.raises(UserError, match="cannot load PickScore_v1 as a model of images and text"):
        load_scorer(f"vqascore:{published / 'PickScore_v1'}", device="cpu")


# --- an endpoint ------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers with fixed log-probabilities; `bodies` keeps what was asked."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.answer, self.bodies = answer, []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        data = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing."""


def _reply(alternatives: dict[str, float]) -> dict[str, object]:
    top = [{"token": token, "logprob": math.log(p)} for token, p in alternatives.items()]
    content = [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]
    return {
        "choices": [
            {"message": {"content": top[0]["token"]}, "finish_reason": "length", "logprobs": {"content": content}}
        ]
    }


@pytest.fixture
def serve() -> Iterator[object]:
    servers = []

    def start(answer: dict[str, object]) -> tuple[Server, str]:
        server = Server(answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server, f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_endpoints_alternatives_are_summed_by_word(serve, images) -> None:
    """ "4" .5, " 4" .1 and "5" .2 of .8 in all: (4 * .6 + 5 * .2) / .8 = 4.25."""
    server, url = serve(_reply({"4": 0.5, " 4": 0.1, "5": 0.2, "Well": 0.2}))
    judge = load_scorer("vlm-judge", source="some-model", url=url)
    batch = judge.score(["a cat", "a dog"], [images[0], images[1]])
    assert batch.values == pytest.approx([4.25, 4.25])
    assert (batch.scorer, batch.dtype) == ("vlm-judge:some-model", "remote")
    body = server.bodies[0]
    assert body["model"] == "some-model" and body["top_logprobs"] == 20 and body["max_tokens"] == 1
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", "text"] and "a " in body["messages"][0]["content"][1]["text"]


def test_an_endpoint_compares_two_images(serve, images) -> None:
    """It likes A whatever lies there: .7 to .3 both ways is 1/2."""
    server, url = serve(_reply({"A": 0.7, "B": 0.3}))
    judge = load_scorer("vlm-judge", source="m", url=url)
    assert judge.prefer(["a"], images[:1], images[1:2]).values == pytest.approx([0.5])
    sent = [
        [p["image_url"]["url"] for p in b["messages"][0]["content"] if p["type"] == "image_url"] for b in server.bodies
    ]
    assert len(sent) == 2 and sent[0] == sent[1][::-1] != sent[1]


def test_an_endpoint_that_reports_no_probabilities_fails_the_rows(serve, images) -> None:
    _, url = serve({"choices": [{"message": {"content": "4"}, "finish_reason": "stop"}]})
    batch = load_scorer("vqascore", source="m", url=url).score(["a"], images[:1])
    assert np.isnan(batch.values[0]) and "reports no log-probabilities" in batch.failures[0]


def test_pictures_reach_an_endpoint_as_they_are(images) -> None:
    from palate.endpoint import ChatClient
    from rewards.vlm import Endpoint

    prepared = Endpoint(ChatClient("http://localhost:1/v1", "m")).prepare(images[1])
    assert np.array_equal(np.asarray(prepared.decode()), np.asarray(images[1]))
    assert Question("q", (prepared,)).pictures[0].id == prepared.id
