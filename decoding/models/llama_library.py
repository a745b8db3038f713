"""The C interface of llama.cpp, as far as it is used here, by ``ctypes``.

The library is that in the wheel of ``xllamacpp``, whose own Python interface shows only what a server writes. A change
of the structures would be silent, so the defaults that the library fills in are compared with those of the version for
which they were declared (``include/llama.h`` of tag b11549).
"""

import ctypes
import importlib.util
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path

PACKAGE, DECLARED_FOR = "xllamacpp", "2026.10.11549"
INSTALL = "pip install -e '.[llamacpp]'"


class ModelOptions(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, c_int32) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, c_void_p) for name in ("tensor_split", "progress_callback", "progress_data", "kv_overrides")),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts", "no_host", "no_alloc")),
        ("load_mtp", c_bool),
    )


class ContextOptions(ctypes.Structure):
    _fields_ = (
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type")),
        *((name, c_int32) for name in ("pooling_type", "attention_type", "flash_attn_type")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, c_float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_data")),
        *((name, c_int32) for name in ("type_k", "type_v")),
        ("moe_cache_size", c_size_t),
        *((name, c_void_p) for name in ("abort_callback", "abort_callback_data")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


# Defaults that are not 0. Of what follows a field that was added, at least one is then elsewhere.
MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True}
CONTEXT_DEFAULTS = {
    **{"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1},
    **dict.fromkeys(("n_threads", "n_threads_batch"), 4),
    **dict.fromkeys(("rope_scaling_type", "pooling_type", "attention_type", "flash_attn_type"), -1),
    **dict.fromkeys(("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "defrag_thold"), -1.0),
    **{"type_k": 1, "type_v": 1, "offload_kqv": True, "no_perf": True, "op_offload": True, "swa_full": True},
}
FUNCTIONS = {
    "llama_backend_init": (None,),
    "llama_log_set": (None, c_void_p, c_void_p),
    "llama_model_default_params": (ModelOptions,),
    "llama_model_load_from_file": (c_void_p, c_char_p, ModelOptions),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_model_n_embd": (c_int32, c_void_p),
    "llama_context_default_params": (ContextOptions,),
    "llama_init_from_model": (c_void_p, c_void_p, ContextOptions),
    "llama_free": (None, c_void_p),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_set_embeddings": (None, c_void_p, c_bool),
    "llama_decode": (c_int32, c_void_p, Batch),
    "llama_get_logits": (POINTER(c_float), c_void_p),
    "llama_get_embeddings": (POINTER(c_float), c_void_p),
    "llama_memory_seq_rm": (c_bool, c_void_p, c_int32, c_int32, c_int32),
    "llama_memory_seq_cp": (None, c_void_p, c_int32, c_int32, c_int32, c_int32),
}
"""The type of the result, and those of the arguments."""
SEQUENCES = 256
"""most sequences of a context; the wheel lacks the function that returns it"""


@ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
def _silent(level: int, text: bytes, data: int) -> None:
    """llama.cpp's messages, of which those of errors come as results too."""


@cache
def library() -> ctypes.CDLL:
    """llama.cpp, with ``FUNCTIONS`` declared. ImportError, one sentence, if it is not installed or cannot be used."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ModuleNotFoundError(f"the llama.cpp backend needs the package {PACKAGE}; run: {INSTALL}", name=PACKAGE)
    files = [file for folder in spec.submodule_search_locations for file in Path(folder).glob(f"{PACKAGE}*.so")]
    try:
        lib = ctypes.CDLL(str(files[0]))
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (IndexError, OSError, AttributeError) as error:
        raise ImportError(f"the package {PACKAGE} here has no llama.cpp that can be called: {error}") from error
    for options, expected in (
        (lib.llama_model_default_params(), MODEL_DEFAULTS),
        (lib.llama_context_default_params(), CONTEXT_DEFAULTS),
    ):
        found = {name: value for name, _ in options._fields_ if (value := getattr(options, name))}
        if found != expected:
            raise ImportError(
                f"llama.cpp in this version of {PACKAGE} has other structures than in {DECLARED_FOR}; run: {INSTALL}"
            )
    lib.llama_log_set(_silent, None)
    lib.llama_backend_init()
    return lib
