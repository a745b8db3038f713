"""The steps of a policy, rebuilt from texts that it wrote."""

import numpy as np
import torch

from decoding import LM
from policies import Policy, token_classes
from policies.features.step_recorder import step_columns
from train.data.prompts import Prompt
from train.monitoring.drift import traffic
from train.traces.collect_handoff import trajectory


def traffic_of_texts(
    small: LM, large: LM, policy: Policy, prompts: list[Prompt], texts: list[tuple], references: list[list[int]]
) -> dict:
    """``drift.traffic`` of texts (token ids, writers) of ``policy``; both models read each text once.

    ``references`` are the large model's own answers.
    """
    classes, tables, accepted, number = token_classes(large.tokenizer), [], [], []
    for i, (prompt, (answer, writers), reference) in enumerate(zip(prompts, texts, references, strict=True)):
        seen = trajectory(small, large, prompt, answer, writers, reference, classes)
        tables.append(np.stack([seen[name] for name in policy.names], 1).astype(np.float32))
        accepted.append(np.where(seen["since_large"] == 0, seen["agreed"], np.nan))
        number += [i] * len(answer)
    table = np.concatenate(tables)
    risk = policy.score_table(torch.from_numpy(table).to(policy.threshold.device))
    escalated = (~(risk < policy.threshold)).cpu().numpy()
    return traffic(step_columns(policy.names, table, escalated, np.concatenate(accepted)), np.array(number))
