"""Numbers that no option can mean: NaN, infinity, and whole numbers beyond what the libraries below take."""

import math

WHOLE = 2**31 - 1
MOST = {"seed": 2**32 - 1, "longest": 256, "threads": 1024, "layers": 1024, "group": 1024, "passes": 10_000}
"""the greatest value of an option: a seed is 32 bits; the others take memory before they are used"""


def check_numbers(config) -> None:
    """ValueError, one sentence, for the first option of the dataclass ``config`` whose number is out of all bounds."""
    for name, value in vars(config).items():
        for number in value if isinstance(value, list | tuple) else [value]:
            option, most = f"--{name.replace('_', '-')}", MOST.get(name, WHOLE)
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{option} must be a finite number, not {number:g}")
            if type(number) is int and number > most:
                raise ValueError(f"{option} must be at most {most}, not {number}")
