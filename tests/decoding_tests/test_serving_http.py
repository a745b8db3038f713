"""The endpoint over HTTP: OpenAI's shapes, streams that join to the whole, and one sentence for what is not served."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from saved_models import TEMPLATE, save, word_tokenizer
from tiny_models import tiny

from decoding import LM, Backoff, Sampling, generate
from decoding.serve import main
from decoding.serving.app import Served, build_app
from decoding.serving.batcher import Batcher
from decoding.serving.record import Records
from decoding.serving.writers import Writers
from policies import Rule

testclient = pytest.importorskip("fastapi.testclient")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "w5 w9 w20"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return save(folder / "small", seed=1), save(folder / "large", seed=2, layers=2)


@pytest.fixture(scope="module")
def pair():
    return [LM(tiny(seed=i, layers=i).model, word_tokenizer("w", TEMPLATE)) for i in (1, 2)]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "served.jsonl"


@pytest.fixture
def client(pair, log):
    policy = Rule("entropy", 2.35)
    writers = Writers(Backoff(pair, policy), policy, Sampling())
    batcher = Batcher(writers, 3, 100, queue=50)
    served = Served("toy", pair[-1], writers, batcher, ("small", "large"), Records(log))
    with testclient.TestClient(build_app(served)) as client:
        yield client


def written(pair, prompt: str, new: int, threshold=2.35, **options):
    """What ``generate`` writes after ``prompt``."""
    ids = pair[-1].tokenizer(prompt, return_tensors="pt")["input_ids"]
    found = generate(Backoff(pair, Rule("entropy", threshold)), ids, max_new_tokens=new, seed=5, **options)
    return found, pair[-1].tokenizer.decode(found.sequences[0, ids.shape[1] :], skip_special_tokens=True)


def events(response) -> list[dict]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_chat_is_answered_as_generate_answers_it_and_says_who_wrote(client, pair):
    body = client.post(CHAT, json={"messages": HELLO, "max_tokens": 12, "seed": 5}).json()
    found, text = written(pair, f"w3 {HELLO[0]['content']} w4", 12)
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length", "logprobs": None}
    ]
    usage, writers = body["usage"], found.writers[0].tolist()
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 12, 17)
    assert usage["written_by"] == {"small": writers.count(0), "large": writers.count(1)}
    assert min(usage["written_by"].values()) > 0
    assert usage["policy"] == {"threshold": pytest.approx(2.35)}
    assert body["object"] == "chat.completion" and body["model"] == "toy"


@pytest.mark.parametrize("more", [{}, {"temperature": 0.9, "top_k": 9}, {"stop": ["w9"]}, {"presence_penalty": 1.5}])
def test_streamed_pieces_join_to_the_whole_text(client, more):
    chat, text = {"messages": HELLO}, {"prompt": "w3 w5 w9 w20 w4"}
    same = {"max_tokens": 12, "seed": 5} | more
    whole = client.post(CHAT, json=chat | same).json()
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    *pieces, usage = events(client.post(CHAT, json=chat | same | stream))
    choices = [piece["choices"][0] for piece in pieces]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    joined = "".join(choice["delta"].get("content", "") for choice in choices)
    assert joined == whole["choices"][0]["message"]["content"]
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert client.post(TEXT, json=text | same).json()["choices"][0]["text"] == joined
    assert (
        "".join(e["choices"][0]["text"] for e in events(client.post(TEXT, json=text | same | {"stream": True})))
        == joined
    )


def test_sixteen_clients_at_once_get_what_single_requests_get(client):
    bodies = [
        {"prompt": f"w{3 + i} w{20 - i}", "max_tokens": 4 + i, "temperature": 0.5 * (i % 2), "seed": i}
        for i in range(16)
    ]
    single = [client.post(TEXT, json=body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda body: client.post(TEXT, json=body).json()["choices"], bodies))
    assert together == single


def test_a_request_sets_its_own_policy(client, pair):
    def ask(policy):
        return client.post(TEXT, json={"prompt": "w5 w9", "max_tokens": 9, "seed": 5, "policy": policy}).json()

    off, never = ask("off"), ask({"threshold": 99})
    assert off["choices"][0]["text"] == written(pair, "w5 w9", 9, threshold=-1.0)[1]
    assert off["usage"]["written_by"] == {"large": 9} and off["usage"]["policy"] == {"threshold": None}
    assert never["choices"][0]["text"] == written(pair, "w5 w9", 9, threshold=99.0)[1]
    assert never["usage"]["written_by"]["small"] >= 8


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (CHAT, {"messages": HELLO, "tools": []}, 400, "tools is not known here; leave it out"),
        (CHAT, {"messages": HELLO, "n": 2}, 400, "n: Input should be 1"),
        (CHAT, {"messages": []}, 400, "messages: List should have at least 1 item"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
        (CHAT, {"messages": HELLO, "temperature": -1}, 400, "temperature: Input should be greater than or equal to 0"),
        (CHAT, {"messages": HELLO, "temperature": 1e-9}, 400, "temperature must be 0, or at least 1e-06"),
        (CHAT, {"messages": HELLO, "stop": [""]}, 400, "stop"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 96}, 400, "more than the 100 that this server has room for"),
        (CHAT, {"messages": HELLO, "model": "gpt-4o"}, 404, "there is no model 'gpt-4o' here; this server has 'toy'"),
        (CHAT, {"messages": HELLO, "policy": "on"}, 400, "policy"),
        (CHAT, {"messages": HELLO, "policy": {}}, 400, "give one of threshold and target_speedup"),
        (CHAT, {"messages": HELLO, "policy": {"target_speedup": 2}}, 400, "policy.json says nothing of other speeds"),
        (TEXT, {"prompt": [3, 99]}, 400, r"input_ids must be token ids in \[0, 37\), not 99"),
        (TEXT, {"prompt": [3, 2**70]}, 400, "prompt"),
        (TEXT, {"prompt": ""}, 400, "prompt"),
        (TEXT, {"prompt": "w3 " * 100}, 400, "the prompt has 100 tokens; this server has room for 100"),
        ("/v1/embeddings", {}, 404, "Not Found"),
    ],
)
def test_what_is_not_served_is_one_sentence_and_the_next_request_is_served(client, path, body, status, said):
    response = client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, status)
    assert error["type"] == "invalid_request_error" and re.search(said, error["message"])
    assert client.post(TEXT, json={"prompt": "w3", "max_tokens": 1}).status_code == 200


def test_an_uncertified_policy_that_always_asks_is_served(pair, log):
    """No threshold would change what it says, so none is taken."""
    policy = Rule.always()
    writers = Writers(Backoff(pair, policy), policy, Sampling())
    served = Served("toy", pair[-1], writers, Batcher(writers, 2, 100), ("small", "large"), Records(log))
    with testclient.TestClient(build_app(served)) as client:
        usage = client.post(TEXT, json={"prompt": "w5 w9", "max_tokens": 4}).json()["usage"]
        assert usage["written_by"] == {"small": 0, "large": 4} and usage["policy"] == {"threshold": None}
        refused = client.post(TEXT, json={"prompt": "w5", "policy": {"threshold": 1.0}})
        assert refused.status_code == 400 and "no policy with a threshold" in refused.json()["error"]["message"]


def test_a_setting_of_draws_that_is_not_applied_is_refused_to_those_who_draw(client, pair, monkeypatch):
    monkeypatch.setattr(pair[-1].model.generation_config, "typical_p", 0.9, raising=False)
    drawn = client.post(TEXT, json={"prompt": "w5", "max_tokens": 2, "temperature": 1.0})
    assert drawn.status_code == 400 and "typical_p" in drawn.json()["error"]["message"]
    assert client.post(TEXT, json={"prompt": "w5", "max_tokens": 2}).status_code == 200


def test_a_prompt_without_a_token_is_refused(client):
    response = client.post(TEXT, json={"prompt": "   "})
    assert response.status_code == 400 and "makes no token" in response.json()["error"]["message"]


def test_a_body_that_is_no_json_is_refused(client):
    response = client.post(CHAT, content=b"{'messages'", headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and "JSON" in response.json()["error"]["message"]


def test_models_health_metrics_and_a_line_of_each_request(client, log):
    client.post(TEXT, json={"prompt": "w3 w4", "max_tokens": 5, "policy": "off"})
    events(client.post(TEXT, json={"prompt": "w3 w4", "max_tokens": 5, "stream": True}))
    assert client.get("/v1/models").json()["data"][0]["id"] == "toy"
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    metrics = client.get("/metrics").text
    assert 'requests_total{finish="length"} 2' in metrics and 'tokens_written_total{model="large"}' in metrics
    first, second = map(json.loads, log.read_text().splitlines())
    assert first["written_by"] == {"large": 5} and second["written_by"].keys() == {"small", "large"}
    assert 0 < first["first_token_seconds"] <= first["seconds"] and first["error"] is None


# The command itself.


def post(url: str, body: dict):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + "/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_the_command_serves_and_sigterm_drains(folders, tmp_path):
    Rule("entropy", 2.35).save(tmp_path / "policy.json")
    models = [
        "--small",
        folders[0],
        "--large",
        folders[1],
        "--policy",
        str(tmp_path / "policy.json"),
        "--method",
        "backoff",
    ]
    command = [sys.executable, "-m", "decoding.serve", *models, "--allow-other-models", "--port", "0", "--threads", "1"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(server.stderr.readline, "")
        url = next(found[0] for line in lines if (found := re.findall(r"http://\S+", line)))
        answers = []
        asking = threading.Thread(target=lambda: answers.append(post(url, {"prompt": "w3", "max_tokens": 100})))
        assert post(url, {"prompt": "w5 w9", "max_tokens": 3})["usage"]["completion_tokens"] == 3
        asking.start()
        time.sleep(0.05)
        os.kill(server.pid, signal.SIGTERM)
        asking.join(60)
        assert answers[0]["usage"]["completion_tokens"] > 0
        assert server.wait(60) in (0, -signal.SIGTERM)
        with pytest.raises(urllib.error.URLError):
            post(url, {"prompt": "w3"})
    finally:
        server.kill()


def test_a_setting_that_depends_on_the_length_of_an_answer_is_refused(tmp_path, capsys):
    folders = save(tmp_path / "small", seed=1), save(tmp_path / "large", seed=2)
    config = tmp_path / "large" / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"forced_eos_token_id": 2}))
    models = ["--small", folders[0], "--large", folders[1], "--port", "0"]
    assert main(models) == 2
    assert "--ignore-generation-config forced_eos_token_id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--port", "70000"], "--port must be at most 65535, not 70000"),
        (["--max-model-len", "999999"], "--max-model-len is 999999, but"),
        (["--policy", "nothing.json"], "nothing.json"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
        (["--log", "no/such/folder/log.jsonl"], "no/such/folder/log.jsonl"),
        (["--traffic-log", "log.jsonl"], "--traffic-log logs what a policy sees; pass --policy too"),
    ],
)
def test_wrong_options_are_one_sentence(folders, options, said, capsys):
    models = ["--small", folders[0], "--large", folders[1], "--port", "0"]
    assert main([*models, *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("serve: ")
