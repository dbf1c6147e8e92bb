#!/usr/bin/env python3
"""Time llama.cpp (the Python package llama-cpp-python) the way its llama-bench does.

    llama_bench.py MODEL.gguf --prefill 512,2048 --decode 0,2048,8192,32768 --threads 2

Prints one JSON object: tokens per second of prompts of N tokens into an empty cache, and of 32
single-token steps at each depth. The cache of a depth beyond 2,048 is made by repeating the cells
of the first 2,048 tokens: the content does not change what a dense step costs, and computing it
would take longer than everything else together.
"""
import argparse
import ctypes
import json
import random
import struct
import sys
import time

import llama_cpp as llama


def repeat_cells(state, depth):
    """The saved state of one sequence, its cells repeated to `depth` cells.

    Layout: u32 mark, u32 flags, u32 streams, u32 cells, per cell (i32 position, u32 count, i32
    sequence), u32 transposed values, u32 layers, then per layer i32 type, u64 bytes of a row, rows.
    An MLA cache has no values of its own.
    """
    streams, cells = struct.unpack_from('<II', state, 8)
    if streams != 1 or cells == 0:
        sys.exit('llama_bench: this llama.cpp saves its cache in another layout')
    sequence = struct.unpack_from('<iIi', state, 16)[2]
    at = 16 + 12 * cells
    transposed, layers = struct.unpack_from('<II', state, at)
    at += 8
    out = [state[:8], struct.pack('<II', streams, depth)]
    out += [struct.pack('<iIi', position, 1, sequence) for position in range(depth)]
    out.append(struct.pack('<II', transposed, layers))
    for _ in range(layers):
        dtype, row = struct.unpack_from('<iQ', state, at)
        rows = state[at + 12:at + 12 + row * cells]
        at += 12 + row * cells
        out.append(struct.pack('<iQ', dtype, row))
        out.append((rows * (depth // cells + 1))[:row * depth])
    if at != len(state):
        sys.exit('llama_bench: this llama.cpp saves its cache in another layout')
    return b''.join(out)


class Engine:
    def __init__(self, path, threads, context, flash, cache):
        llama.llama_backend_init()
        begin = time.perf_counter()
        self.model = llama.llama_model_load_from_file(
            path.encode(), llama.llama_model_default_params())
        if not self.model:
            sys.exit(f'llama_bench: {path} does not load')
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 2048, 512
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = flash
        if cache == 'q8_0':  # MLA wants K and V of one type, and V in q8_0 wants flash attention
            params.type_k = params.type_v = llama.GGML_TYPE_Q8_0
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit('llama_bench: no context of this size')
        self.load_seconds = time.perf_counter() - begin
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(2048, 0, 1)
        self.random = random.Random(1)

    def clear(self):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def decode(self, count, position):
        """Process `count` random tokens at `position`; logits of the last one."""
        batch = self.batch
        batch.n_tokens = count
        for i in range(count):
            batch.token[i] = self.random.randrange(3, self.vocab)
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == count - 1
        if llama.llama_decode(self.context, batch) != 0:
            sys.exit('llama_bench: llama_decode failed')
        llama.llama_synchronize(self.context)

    def prompt(self, tokens):
        for position in range(0, tokens, 2048):
            self.decode(min(2048, tokens - position), position)

    def save(self):
        size = llama.llama_state_seq_get_size(self.context, 0)
        buffer = (ctypes.c_uint8 * size)()
        llama.llama_state_seq_get_data(self.context, buffer, size, 0)
        return bytes(buffer)

    def fill(self, state, depth):
        self.clear()
        if depth == 0:
            return
        data = repeat_cells(state, depth)
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        if llama.llama_state_seq_set_data(self.context, buffer, len(data), 0) == 0:
            sys.exit('llama_bench: restoring the cache failed')


def time_prefill(engine, tokens, repeats):
    best = 0.0
    for _ in range(repeats):
        engine.clear()
        begin = time.perf_counter()
        engine.prompt(tokens)
        best = max(best, tokens / (time.perf_counter() - begin))
    return best


def time_decode(engine, state, depth, steps, repeats):
    best = 0.0
    for _ in range(repeats):
        engine.fill(state, depth)
        engine.decode(1, depth)
        begin = time.perf_counter()
        for step in range(1, steps + 1):
            engine.decode(1, depth + step)
        best = max(best, steps / (time.perf_counter() - begin))
    return best


def numbers(text):
    return [int(part) for part in text.split(',') if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    parser.add_argument('--prefill', type=numbers, default=[512, 2048])
    parser.add_argument('--decode', type=numbers, default=[0, 2048, 8192, 32768])
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--steps', type=int, default=32)
    parser.add_argument('--filled', type=int, default=2048,
                        help='cells computed in earnest; deeper caches repeat them')
    parser.add_argument('--repeats', type=int, default=2, help='the best of this many counts')
    parser.add_argument('--flash', choices=['auto', 'off', 'on'], default='auto')
    parser.add_argument('--cache', choices=['f16', 'q8_0'], default='f16',
                        help='q8_0: products of integers; only with flash attention')
    args = parser.parse_args()

    context = max(args.decode + args.prefill) + args.steps + 256
    flash = {'auto': -1, 'off': 0, 'on': 1}[args.flash]
    engine = Engine(args.model, args.threads, context, flash, args.cache)
    engine.prompt(64)  # touch the weights
    result = {'engine': 'llama.cpp ' + llama.__version__, 'model': args.model,
              'flash_attention': args.flash, 'cache': args.cache, 'threads': args.threads,
              'load_seconds': engine.load_seconds, 'prefill': {}, 'decode': {}}
    for tokens in args.prefill:
        result['prefill'][tokens] = time_prefill(engine, tokens, args.repeats)
    deepest = min(args.filled, max(args.decode, default=0))
    state = b''
    if deepest:
        engine.clear()
        engine.prompt(deepest)
        state = engine.save()
    for depth in args.decode:
        result['decode'][depth] = time_decode(engine, state, depth, args.steps, args.repeats)
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    SILENT = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(SILENT, None)
    main()
