"""Published methods: their thresholds against the papers' formulas, their texts against loops of plain forwards."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import eager, greedy, nudged, tiny

from decoding import PromptLookup, Sampling, generate
from policies import Logistic, Random, Rule, Survival
from train.search.recipes import RECIPES, make

large = tiny("llama", layers=2, seed=1)
small = nudged(large, 0.15)
q_model, p_model = eager(small), eager(large)
NEW = 16


def entropies():
    """Steps of every entropy, and the entropies."""
    logits = torch.randn(400, 37) * torch.linspace(0.1, 6, 400)[:, None]
    p = logits.double().softmax(-1)
    step = SimpleNamespace(logits=logits, position=torch.arange(400))
    return step, -(p * p.log()).sum(-1)


def test_svip_and_adaedl_stop_where_their_papers_do():
    step, entropy = entropies()
    svip = torch.sqrt(0.15 * entropy) > 0.3
    adaedl = 1 - torch.sqrt(0.2 * entropy) < 0.5
    for name, expected in (("svip", svip), ("adaedl", adaedl)):
        assert expected.any() and not expected.all()
        assert torch.equal(RECIPES[name].options()["stop"](step), expected)


@torch.no_grad()
def loop(prompt, length, stop, keep_token, keep):
    """The greedy text of a draft that ends at ``stop(q, tokens so far)`` and of which ``keep(p, q, x)`` are kept."""
    after = lambda model, text: model(torch.tensor([text])).logits[0].double()  # noqa: E731
    text = list(prompt)
    while len(text) < len(prompt) + NEW:
        draft, room = [], min(length, len(prompt) + NEW - len(text) - 1)
        chances = []
        while len(draft) < room:
            q = after(q_model, text + draft)[-1].softmax(-1)
            chances.append(float(q.max()))
            stopped = stop(q, chances)
            if not stopped or keep_token:
                draft.append(int(q.argmax()))
            if stopped:
                break
        said = after(p_model, text + draft)[len(text) - 1 :].softmax(-1)
        drafted = after(q_model, text + draft)[len(text) - 1 :].softmax(-1)
        kept = 0
        while kept < len(draft) and keep(said[kept], drafted[kept], draft[kept]):
            kept += 1
        text += [*draft[:kept], int(said[kept].argmax())]
    return text


def same(p, q, x):
    return p.argmax() == x


LOOPS = {
    "bild": (10, lambda q, c: q.max() < 0.6, False, lambda p, q, x: -p[x].log() <= 5 or p.argmax() == x),
    "fsd": (5, lambda q, c: False, False, lambda p, q, x: (q * (q / p).log()).sum() <= 0.95),
    "svip": (40, lambda q, c: math.sqrt(-0.15 * (q * q.log()).sum()) > 0.3, True, same),
    "adaedl": (10, lambda q, c: 1 - math.sqrt(-0.2 * (q * q.log()).sum()) < 0.5, False, same),
    "specdec++": (20, lambda q, c: len(c) >= 2 and 1 - math.prod(c) > 0.7, True, same),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_writes_what_its_loop_writes(name, prompts):
    ids, mask = prompts
    result = generate(make(name, [small, large]), ids, mask, max_new_tokens=NEW, eos_token_id=())
    for row, length in enumerate(mask.sum(1).tolist()):
        text = result.sequences[row, 9 - length :].tolist()
        assert text == loop(text[:length], *LOOPS[name])
    assert 0 < result.counts["accepted"] <= result.counts["drafted"]
    exact = torch.equal(result.sequences, greedy(large, ids, mask, NEW))
    assert exact == RECIPES[name].lossless


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_takes_changes(name):
    recipe = RECIPES[name]
    assert any(character.isdigit() for character in recipe.paper)
    decoder = make(name, [small, large], length=3)
    assert decoder.length == 3
    assert make(name, [small, large]).length == LOOPS[name][0]
    result = generate(decoder, torch.tensor([[3, 4]]), max_new_tokens=5, sampling=Sampling(1.0), eos_token_id=())
    assert result.lengths.tolist() == [5]


def test_options_are_made_anew():
    first, second = (make("bild", [small, large]) for _ in range(2))
    assert first.stop is not second.stop and first.stop.threshold.data_ptr() != second.stop.threshold.data_ptr()


def test_an_unknown_recipe_is_refused_by_name():
    with pytest.raises(ValueError, match=r"medusa.*bild"):
        make("medusa", [small, large])
    with pytest.raises(ValueError, match="stop policy"):
        make("svip", [PromptLookup(), large])


def test_survival_by_hand():
    """Chances .9 .8 of this draft and .5 now; what was before the draft does not count."""
    step = SimpleNamespace(
        logits=torch.tensor([[0.5, 0.25, 0.25]]).log(),
        position=torch.tensor([7]),
        since_large=torch.tensor([2]),
        history=torch.tensor([[[0.1], [0.9], [0.8]]]),
    )
    assert Survival(window=3).score(step).item() == pytest.approx(1 - 0.9 * 0.8 * 0.5)
    assert Survival(threshold=0.63)(step).item() and not Survival(threshold=0.65)(step).item()
    assert not Survival(threshold=0.1, least=4)(step).item()
    step.history[0, 1] = torch.nan
    assert Survival(threshold=0.9)(step).item()


def test_survival_of_a_fitted_risk(prompts):
    """The chance is 1 - risk, and a batch is single runs though the product is a state: it belongs to the rows."""
    ids, mask = prompts
    torch.manual_seed(0)
    x = torch.rand(200, 1) * 3
    risk = Logistic(("entropy",)).fit(x.numpy(), (x[:, 0] / 3).numpy())
    stop = Survival(risk, threshold=0.9, least=1)
    options = {"max_new_tokens": NEW, "eos_token_id": (), "sampling": Sampling(0.8)}
    decoder = make("specdec++", [small, large], stop=stop)
    batch = generate(decoder, ids, mask, seed=3, **options)
    assert batch.counts["drafted"] > batch.counts["accepted"] > 0
    for row, length in enumerate(mask.sum(1).tolist()):
        one = generate(decoder, ids[row : row + 1, 9 - length :], seed=3 + row, **options)
        assert torch.equal(one.sequences[0, length:], batch.sequences[row, 9:])


def test_survival_refuses_bad_settings_by_name():
    for values in ({"threshold": 1.0}, {"threshold": -0.1}, {"least": 0}):
        with pytest.raises(ValueError, match="survival needs"):
            Survival(Random(0.5), **values)
    with pytest.raises(ValueError, match="history"):
        Survival(Rule("mean_entropy", 1.0))
