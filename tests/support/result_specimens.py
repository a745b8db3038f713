"""A result as runs/NAME/result.json holds it, with hostile text in it, for the tests of what is made from it."""

import numpy as np

HOSTILE = "<script>alert(1)</script>"


def method(key, label, speed, speedup, loss, share, interval=True):
    return {
        "key": key,
        "label": label,
        "tokens_per_second": speed,
        "speedup": speedup,
        "speedup_interval": [speedup - 0.03, speedup + 0.03] if interval else [speedup, speedup],
        "loss": loss,
        "loss_interval": [loss - 0.008, loss + 0.008] if interval else [loss, loss],
        "large_share": share,
        "length_ratio": 1.02,
        "total_time_ratio": 1 / speedup,
        "plain_regret": loss * 0.65,
        "at_cap": 0.25,
        "recovered": None if key == "llamacpp" else 1 - loss / 0.4,
    }


def found():
    ramp = np.linspace(0, 1, 21)
    return {
        "name": "story-1.3x",
        "created": "2026-11-22T10:00:00",
        "machine": {"cpu": "some cpu", "threads": 2, "torch": "2.13", "device": "cpu", "dtype": "float32"},
        "models": [
            {"name": name, "tokenizer": "t", "config": "c", "weights": "w", "generation_config": "g"}
            for name in ("little", "big")
        ],
        "loss_name": "guarded regret",
        "plane": ["speedup", "loss"],
        "threshold_note": "the large model is asked.",
        "goal": {"target_speedup": 1.3},
        "verdict": "1.32x faster & better than random <b>hand-off</b>",
        "policy": {
            "describe": "logistic(entropy) >= 0.31",
            "kind": "logistic",
            "label": "regret",
            "threshold": 0.31,
            "features": ["entropy", "margin"],
            "weights": {"margin": -0.2, "entropy": 1.25},
        },
        "splits": {name: {"prompts": 120, "groups": 118, "hash": name * 12} for name in ("fit", "tune", "holdout")},
        "cost": {"small": {"1": 0.0041}, "large": {"1": 0.05, "2": 0.052, "16": 0.0777}},
        "methods": [
            method("large", "large model alone", 18.2, 1.0, 0.0, 1.0, interval=False),
            method("small", "small model alone", 61.9, 3.4, 0.4, 0.0),
            method("random_low", "random hand-off, 55 %", 22.0, 1.22, 0.07, 0.55),
            method("random_high", "random hand-off, 45 %", 25.0, 1.38, 0.094, 0.45),
            method("speculative", "speculative, exact | length 4", 23.0, 1.26, 0.0, None),
            method("tuned", "tuned policy $5 [x]", 24.1, 1.32, 0.048, 0.48),
            method("llamacpp", "llama.cpp", 90.0, 4.9, 0.001, None),
        ],
        "frontier": {
            "policy": [[1 + 2.4 * t, 0.4 * t**1.8] for t in ramp.tolist()],
            "random": [[1 + 2.4 * t, 0.4 * t] for t in ramp.tolist()],
        },
        "replay": {"live_speedup_over_replayed": 0.97, "live_loss_over_replayed": 1.1},
        "comparison": {
            "random_loss_at_same_speed": 0.081,
            "difference": -0.033,
            "interval": [-0.045, -0.02],
            "confidence": 0.95,
            "bracketed": True,
        },
        "live_over_table": 1.0,
        "front": [],
        "pruned": 0,
        "calibration": {
            "rows": 240,
            "brier": 0.0625,
            "constant": 0.0811,
            "error": 0.0123,
            "bins": [{"rows": 120, "predicted": x, "observed": y} for x, y in ((0.1, 0.08), (0.5, 0.6))],
        },
        "trials": [
            {"number": i, "params": {"C": 0.5, "label": HOSTILE}, "loss": 0.1, "speedup": 1 + i / 9, "feasible": i > 3}
            for i in range(9)
        ],
        "chosen_trial": 5,
        "samples": [
            {
                "prompt": f"Write {HOSTILE}",
                "tokens": [["Once", 0, 0.12], [" <b>&", 1, 0.9], ["\n.", 1, None]],
                "large": f"{HOSTILE} & so on",
            }
        ],
    }
