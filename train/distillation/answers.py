"""The target's own answers, for a drafter, in a jsonl that survives a kill."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from decoding import LM, Sampling
from policies.storage import documents
from train.common.atomic import append_rows, read_rows
from train.common.rows import GenerationRow
from train.data.prompts import Prompt
from train.workers.crew import ALONE, Crew
from train.workers.pair import Pair
from train.workers.stage import Stage
from train.workers.stage_folder import AGAIN


def write_generations(
    target: LM,
    prompts: Sequence[Prompt],
    path: Path,
    max_new_tokens: int,
    temperature: float,
    batch: int = 96,
    crew: Crew = ALONE,
) -> None:
    """Append one answer per prompt to the jsonl ``path`` (``prompt_ids``, ``new_ids``, ``temperature``).

    Prompts of similar length are batched. Those that the file already answers at this temperature are skipped, so a
    run that was killed goes on, and ends with the answers that it would have had: a prompt draws by its place.
    """
    rows = (row for row in read_rows(path, GenerationRow) if row["temperature"] == temperature)
    done, todo = Counter(tuple(row["prompt_ids"]) for row in rows), []
    for place, prompt in enumerate(sorted(prompts, key=lambda p: len(p.ids))):
        if done[prompt.ids]:
            done[prompt.ids] -= 1
        else:
            todo.append((place, prompt))
    sampling, of, tasks = Sampling(temperature, top_p=0.95) if temperature > 0 else Sampling(), {}, {}
    for start in range(0, len(todo), batch):
        (seed, _), *_ = some = todo[start : start + batch]
        of[seed] = [prompt for _, prompt in some]
        tasks[seed] = {"prompts": [prompt.plain() for prompt in of[seed]], "seed": seed}
    how = {"max_new_tokens": max_new_tokens, "sampling": asdict(sampling)}
    stage = Stage("answers", f"answers, temperature {temperature:g}", path.parent, how, tasks)
    about = {"temperature": temperature}
    for number, made in crew.made(stage, Pair([target])):
        written = zip(of[number], documents.read(made, AGAIN)["answers"], strict=True)
        append_rows(path, [{"source": p.id} | about | {"prompt_ids": p.ids, "new_ids": new} for p, new in written])
    crew.clear(path.parent)
