"""llama.cpp's C interface, as far as logits need it, out of the library that also serves.

``xllamacpp`` has no call for the logits of a whole prompt, but its library exports
llama.h. The two parameter structs are passed by value and change from version to
version, so they are taken whole from llama.cpp's own defaults, and the few numbers
that are set in them are read back from the context.
"""

from __future__ import annotations

import ctypes as c
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import wire

_INTS = 128  # larger than either struct


class _Parameters(c.Structure):
    _fields_ = [("ints", c.c_int32 * _INTS)]


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_CALLS = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LOG, c.c_void_p]),
    "llama_model_default_params": (_Parameters, []),
    "llama_context_default_params": (_Parameters, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, _Parameters]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, _Parameters]),
    "llama_n_ctx": (c.c_uint32, [c.c_void_p]),
    "llama_n_batch": (c.c_uint32, [c.c_void_p]),
    "llama_set_n_threads": (None, [c.c_void_p, c.c_int32, c.c_int32]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_vocab_bos": (c.c_int32, [c.c_void_p]),
    "llama_vocab_get_add_bos": (c.c_bool, [c.c_void_p]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_batch_init": (_Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_decode": (c.c_int32, [c.c_void_p, _Batch]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_get_logits": (c.POINTER(c.c_float), [c.c_void_p]),
}


class Llama:
    """A model with a context of ``n_ctx`` tokens that are evaluated in one batch."""

    def __init__(self, path: str, n_ctx: int, threads: int) -> None:
        self._errors: list[str] = []
        self._call = _library()
        # Kept as a member: the library calls it for as long as it lives.
        self._log = _LOG(self._note)
        self._call.llama_log_set(self._log, None)
        self._call.llama_backend_init()
        self._model = self._call.llama_model_load_from_file(path.encode(), self._call.llama_model_default_params())
        if not self._model:
            raise wire.Refused("model-damaged", path=path, why=" ".join(self._errors)[:300] or "llama.cpp refused it")
        self._context = self._make_context(n_ctx)
        self._call.llama_set_n_threads(self._context, threads, threads)
        self._vocabulary = self._call.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._call.llama_vocab_n_tokens(self._vocabulary)
        self._batch = self._call.llama_batch_init(n_ctx, 0, 1)
        self._n_ctx = n_ctx

    @property
    def bos(self) -> int | None:
        """The token that begins every text, if this model wants one."""
        wants = self._call.llama_vocab_get_add_bos(self._vocabulary)
        return int(self._call.llama_vocab_bos(self._vocabulary)) if wants else None

    def tokenize(self, text: str) -> list[int]:
        """The text's tokens, with what the model puts before them; special tokens in it are plain text."""
        raw = text.encode(errors="replace")  # half of a surrogate pair is no UTF-8
        # A negative count is how many there are; a vocabulary without a space makes several of each.
        room = len(raw) + 8
        while True:
            tokens = (c.c_int32 * room)()
            count = self._call.llama_tokenize(self._vocabulary, raw, len(raw), tokens, room, True, False)
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def logits(self, tokens: Sequence[int], first: int = 0) -> np.ndarray:
        """Logits after each token from ``first`` on: float32, (len(tokens) - first, n_vocab).

        The array is llama.cpp's own memory: it is overwritten by the next call.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for at, token in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, at, 1
            batch.seq_id[at][0], batch.logits[at] = 0, at >= first
        self._call.llama_memory_clear(self._call.llama_get_memory(self._context), True)
        status = self._call.llama_decode(self._context, batch)
        if status:
            raise wire.Refused("engine-refused", why=f"llama_decode: {status}. {' '.join(self._errors)[:200]}")
        shape = (len(tokens) - first, self.n_vocab)
        return np.ctypeslib.as_array(self._call.llama_get_logits(self._context), shape)

    def _make_context(self, n_ctx: int) -> int:
        parameters = self._call.llama_context_default_params()
        # n_ctx, n_batch, n_ubatch: the first three numbers of llama_context_params.
        for at in range(3):
            parameters.ints[at] = n_ctx
        context: int | None = self._call.llama_init_from_model(self._model, parameters)
        if not context:
            raise wire.Refused("engine-refused", why=" ".join(self._errors)[:300] or "no context")
        found = self._call.llama_n_ctx(context), self._call.llama_n_batch(context)
        if found[0] < n_ctx or found[1] != n_ctx:
            raise wire.Refused("engine-refused", why=f"llama.cpp's parameters have moved: asked {n_ctx}, got {found}")
        return context

    def _note(self, level: int, text: bytes | None, _data: object) -> None:
        if level == 4 and text:  # GGML_LOG_LEVEL_ERROR
            self._errors.append(text.decode(errors="replace").strip())


def _library() -> c.CDLL:
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        raise wire.Refused("child-failed", why="xllamacpp is not installed")
    # Threads that wait by spinning take the time that a neighbour's process, or the other thread, needs: beside a
    # busy core a chunk took 1.6 times as long with OpenMP's default. Read when the library is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import xllamacpp  # noqa: F401  loads the libraries that this one needs

    folder = Path(found.submodule_search_locations[0])
    library = c.CDLL(str(next(one for one in folder.iterdir() if one.suffix in (".so", ".pyd"))))
    for name, (result, arguments) in _CALLS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
