#!/usr/bin/env python3
"""Write one random-weight DeepSeek-V3.2 model of 0.73B parameters for timing on CPUs.

    OUT/model-hf/                 Hugging Face layout, bf16, for Tamis
    OUT/deepseek2.bf16.gguf       the same weights as a dense MLA model, for llama.cpp

so that both engines can be timed on the same weights in one run. Deterministic: each tensor is
drawn from a generator seeded with the CRC-32 of its name. Needs numpy, and gguf for the second.
"""
import argparse
import json
import os
import struct
import zlib

import numpy as np

CONFIG = {
    'architectures': ['DeepseekV32ForCausalLM'], 'model_type': 'deepseek_v32',
    'torch_dtype': 'bfloat16', 'vocab_size': 32768, 'hidden_size': 1024, 'intermediate_size': 3072,
    'moe_intermediate_size': 512, 'num_hidden_layers': 12, 'num_attention_heads': 16,
    'num_key_value_heads': 16, 'n_shared_experts': 1, 'n_routed_experts': 32,
    'num_experts_per_tok': 4, 'routed_scaling_factor': 2.5, 'n_group': 1, 'topk_group': 1,
    'topk_method': 'noaux_tc', 'scoring_func': 'sigmoid', 'norm_topk_prob': True,
    'first_k_dense_replace': 1, 'moe_layer_freq': 1, 'num_nextn_predict_layers': 0,
    'q_lora_rank': 512, 'kv_lora_rank': 512, 'qk_nope_head_dim': 128, 'qk_rope_head_dim': 64,
    'v_head_dim': 128, 'index_n_heads': 8, 'index_head_dim': 128, 'index_topk': 2048,
    'hidden_act': 'silu', 'rms_norm_eps': 1e-6, 'max_position_embeddings': 163840,
    'rope_theta': 10000.0,
    'rope_scaling': {'type': 'yarn', 'factor': 40, 'original_max_position_embeddings': 4096,
                     'beta_fast': 32, 'beta_slow': 1, 'mscale': 1.0, 'mscale_all_dim': 1.0},
    'attention_bias': False, 'attention_dropout': 0.0, 'tie_word_embeddings': False,
    'use_cache': True, 'bos_token_id': 0, 'eos_token_id': 1, 'pad_token_id': 2,
    'initializer_range': 0.02, 'transformers_version': '4.57.6',
}
SPECIAL_TOKENS = ['<|begin_of_sentence|>', '<|end_of_sentence|>', '<|pad|>']
NORM, BIAS = 'norm', 'bias'  # instead of a standard deviation: 1 + 0.1 n, and 0.1 n


def tensor_table(c):
    """Rows (name, shape, standard deviation, dtype) in file order."""
    hidden, layers, heads = c['hidden_size'], c['num_hidden_layers'], c['num_attention_heads']
    q_lora, kv_lora = c['q_lora_rank'], c['kv_lora_rank']
    nope, rope, value = c['qk_nope_head_dim'], c['qk_rope_head_dim'], c['v_head_dim']
    index_heads, index_dim = c['index_n_heads'], c['index_head_dim']
    small = 1.0 / np.sqrt(2 * layers)

    def std(fan_in, gain=1.0):
        return gain / np.sqrt(fan_in)

    def mlp(prefix, width):
        yield prefix + 'gate_proj.weight', (width, hidden), std(hidden), 'BF16'
        yield prefix + 'up_proj.weight', (width, hidden), std(hidden), 'BF16'
        yield prefix + 'down_proj.weight', (hidden, width), std(width, small), 'BF16'

    yield 'model.embed_tokens.weight', (c['vocab_size'], hidden), 1.0, 'BF16'
    for i in range(layers):
        layer = f'model.layers.{i}.'
        attn = layer + 'self_attn.'
        yield layer + 'input_layernorm.weight', (hidden,), NORM, 'BF16'
        yield attn + 'q_a_proj.weight', (q_lora, hidden), std(hidden), 'BF16'
        yield attn + 'q_a_layernorm.weight', (q_lora,), NORM, 'BF16'
        yield attn + 'q_b_proj.weight', (heads * (nope + rope), q_lora), std(q_lora), 'BF16'
        yield attn + 'kv_a_proj_with_mqa.weight', (kv_lora + rope, hidden), std(hidden), 'BF16'
        yield attn + 'kv_a_layernorm.weight', (kv_lora,), NORM, 'BF16'
        yield attn + 'kv_b_proj.weight', (heads * (nope + value), kv_lora), std(kv_lora), 'BF16'
        yield attn + 'o_proj.weight', (hidden, heads * value), std(heads * value, small), 'BF16'
        yield attn + 'indexer.wq_b.weight', (index_heads * index_dim, q_lora), std(q_lora), 'BF16'
        yield attn + 'indexer.wk.weight', (index_dim, hidden), std(hidden), 'BF16'
        yield attn + 'indexer.k_norm.weight', (index_dim,), NORM, 'BF16'
        yield attn + 'indexer.k_norm.bias', (index_dim,), BIAS, 'BF16'
        yield attn + 'indexer.weights_proj.weight', (index_heads, hidden), std(hidden), 'BF16'
        yield layer + 'post_attention_layernorm.weight', (hidden,), NORM, 'BF16'
        if i < c['first_k_dense_replace']:
            yield from mlp(layer + 'mlp.', c['intermediate_size'])
            continue
        experts, width = c['n_routed_experts'], c['moe_intermediate_size']
        yield layer + 'mlp.gate.weight', (experts, hidden), std(hidden), 'BF16'
        yield layer + 'mlp.gate.e_score_correction_bias', (experts,), BIAS, 'F32'
        for e in range(experts):
            yield from mlp(f'{layer}mlp.experts.{e}.', width)
        yield from mlp(layer + 'mlp.shared_experts.', width * c['n_shared_experts'])
    yield 'model.norm.weight', (hidden,), NORM, 'BF16'
    yield 'lm_head.weight', (c['vocab_size'], hidden), std(hidden, 3.0), 'BF16'


def to_bf16(x):
    """float32 to the bits of bf16, nearest even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


class Weights:
    """Draws each tensor when it is asked for."""

    def __init__(self, config, seed):
        self.table = {name: row for name, *row in tensor_table(config)}
        self.seed = seed

    def stored(self, name):
        """uint16 (bits of bf16) or float32, as in the file."""
        shape, std, dtype = self.table[name]
        bits = np.random.PCG64([zlib.crc32(name.encode()), self.seed])
        x = np.random.Generator(bits).standard_normal(shape, dtype=np.float32)
        if std == NORM:
            x = 1.0 + np.float32(0.1) * x
        else:
            x *= np.float32(0.1 if std == BIAS else std)
        return to_bf16(x) if dtype == 'BF16' else x.astype(np.float32)

    def float32(self, name):
        x = self.stored(name)
        return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def byte_symbols():
    """The 256 printable symbols that byte-level BPE writes bytes with."""
    symbols, extra = {}, 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte:
            symbols[byte] = chr(byte)
        else:
            symbols[byte] = chr(256 + extra)
            extra += 1
    # Printable bytes come first in the vocabulary order of GPT-2.
    return dict(sorted(symbols.items(), key=lambda item: (ord(item[1]) >= 256, item[0])))


def vocabulary(size):
    """Tokens in id order, how many of them are real, and the merges."""
    symbols = byte_symbols()
    letters = [symbols[i] for i in range(ord('a'), ord('z') + 1)]
    merges = [(x, y) for x in [symbols[32], *letters] for y in letters]
    tokens = SPECIAL_TOKENS + [symbols[i] for i in range(256)] + [x + y for x, y in merges]
    real = len(tokens)
    tokens += [f'<|unused_{i}|>' for i in range(size - real)]
    return tokens, real, [f'{x} {y}' for x, y in merges]


def write_json(path, value):
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(value, file, ensure_ascii=False)


def tokenizer_json(tokens, merges):
    added = [{'id': i, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False,
              'normalized': False, 'special': True} for i, token in enumerate(SPECIAL_TOKENS)]
    byte_level = {'type': 'ByteLevel', 'trim_offsets': True, 'use_regex': True}
    return {
        'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
        'normalizer': None, 'pre_tokenizer': {**byte_level, 'add_prefix_space': False},
        'post_processor': None, 'decoder': {**byte_level, 'add_prefix_space': True},
        'model': {'type': 'BPE', 'dropout': None, 'unk_token': None,
                  'continuing_subword_prefix': None, 'end_of_word_suffix': None,
                  'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': False,
                  'vocab': {token: i for i, token in enumerate(tokens)}, 'merges': merges},
    }


def write_hugging_face(folder, config, weights):
    os.makedirs(folder, exist_ok=True)
    tokens, _, merges = vocabulary(config['vocab_size'])
    write_json(f'{folder}/config.json', config)
    write_json(f'{folder}/generation_config.json',
               {'bos_token_id': 0, 'eos_token_id': 1, 'do_sample': False})
    write_json(f'{folder}/tokenizer.json', tokenizer_json(tokens, merges))
    write_json(f'{folder}/tokenizer_config.json', {
        'tokenizer_class': 'PreTrainedTokenizerFast', 'add_bos_token': True, 'add_eos_token': False,
        'bos_token': SPECIAL_TOKENS[0], 'eos_token': SPECIAL_TOKENS[1],
        'pad_token': SPECIAL_TOKENS[2], 'model_max_length': config['max_position_embeddings'],
        'clean_up_tokenization_spaces': False})
    header, end = {'__metadata__': {'format': 'pt'}}, 0
    for name, (shape, _, dtype) in weights.table.items():
        begin, end = end, end + int(np.prod(shape)) * (2 if dtype == 'BF16' else 4)
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with open(f'{folder}/model.safetensors', 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for name in weights.table:
            weights.stored(name).tofile(file)


def add_gguf_metadata(writer, gguf, c):
    rope = c['rope_scaling']
    tokens, real, merges = vocabulary(c['vocab_size'])
    writer.add_name('tamis-cpu-bench')
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_block_count(c['num_hidden_layers'])
    writer.add_context_length(c['max_position_embeddings'])
    writer.add_embedding_length(c['hidden_size'])
    writer.add_feed_forward_length(c['intermediate_size'])
    writer.add_head_count(c['num_attention_heads'])
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(c['rope_theta'])
    writer.add_layer_norm_rms_eps(c['rms_norm_eps'])
    writer.add_expert_count(c['n_routed_experts'])
    writer.add_expert_used_count(c['num_experts_per_tok'])
    writer.add_expert_shared_count(c['n_shared_experts'])
    writer.add_expert_group_count(c['n_group'])
    writer.add_expert_group_used_count(c['topk_group'])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_leading_dense_block_count(c['first_k_dense_replace'])
    writer.add_expert_feed_forward_length(c['moe_intermediate_size'])
    writer.add_expert_weights_scale(c['routed_scaling_factor'])
    writer.add_expert_weights_norm(True)
    writer.add_vocab_size(c['vocab_size'])
    writer.add_q_lora_rank(c['q_lora_rank'])
    writer.add_kv_lora_rank(c['kv_lora_rank'])
    writer.add_key_length(c['kv_lora_rank'] + c['qk_rope_head_dim'])
    writer.add_value_length(c['kv_lora_rank'])
    writer.add_key_length_mla(c['qk_nope_head_dim'] + c['qk_rope_head_dim'])
    writer.add_value_length_mla(c['v_head_dim'])
    writer.add_rope_dimension_count(c['qk_rope_head_dim'])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope['factor'])
    writer.add_rope_scaling_orig_ctx_len(rope['original_max_position_embeddings'])
    writer.add_rope_scaling_yarn_beta_fast(rope['beta_fast'])
    writer.add_rope_scaling_yarn_beta_slow(rope['beta_slow'])
    writer.add_rope_scaling_yarn_log_mul(0.1 * rope['mscale_all_dim'])
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(tokens)
    control, normal, unused = 3, 1, 5
    specials = len(SPECIAL_TOKENS)
    writer.add_token_types([control] * specials + [normal] * (real - specials) +
                           [unused] * (len(tokens) - real))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)


def gguf_layer(c, weights, i):
    """Rows (name in the GGUF, array): bf16 bits stay bf16, float32 stays float32."""
    layer, out = f'model.layers.{i}.', f'blk.{i}.'
    attn, mlp = layer + 'self_attn.', layer + 'mlp.'
    projections = (('gate', 'gate_proj'), ('up', 'up_proj'), ('down', 'down_proj'))
    nope = c['qk_nope_head_dim']
    yield out + 'attn_norm.weight', weights.float32(layer + 'input_layernorm.weight')
    yield out + 'attn_q_a.weight', weights.stored(attn + 'q_a_proj.weight')
    yield out + 'attn_q_a_norm.weight', weights.float32(attn + 'q_a_layernorm.weight')
    yield out + 'attn_q_b.weight', weights.stored(attn + 'q_b_proj.weight')
    yield out + 'attn_kv_a_mqa.weight', weights.stored(attn + 'kv_a_proj_with_mqa.weight')
    yield out + 'attn_kv_a_norm.weight', weights.float32(attn + 'kv_a_layernorm.weight')
    kv_b = weights.stored(attn + 'kv_b_proj.weight').reshape(
        c['num_attention_heads'], nope + c['v_head_dim'], c['kv_lora_rank'])
    yield out + 'attn_k_b.weight', kv_b[:, :nope].transpose(0, 2, 1)
    yield out + 'attn_v_b.weight', kv_b[:, nope:]
    yield out + 'attn_output.weight', weights.stored(attn + 'o_proj.weight')
    yield out + 'ffn_norm.weight', weights.float32(layer + 'post_attention_layernorm.weight')
    if i < c['first_k_dense_replace']:
        for short, name in projections:
            yield out + f'ffn_{short}.weight', weights.stored(mlp + f'{name}.weight')
        return
    yield out + 'ffn_gate_inp.weight', weights.float32(mlp + 'gate.weight')
    yield out + 'exp_probs_b.bias', weights.float32(mlp + 'gate.e_score_correction_bias')
    for short, name in projections:
        yield out + f'ffn_{short}_exps.weight', np.stack(
            [weights.stored(f'{mlp}experts.{e}.{name}.weight')
             for e in range(c['n_routed_experts'])])
        yield out + f'ffn_{short}_shexp.weight', weights.stored(
            mlp + f'shared_experts.{name}.weight')


def gguf_tensors(c, weights):
    yield 'token_embd.weight', weights.stored('model.embed_tokens.weight')
    for i in range(c['num_hidden_layers']):
        yield from gguf_layer(c, weights, i)
    yield 'output_norm.weight', weights.float32('model.norm.weight')
    yield 'output.weight', weights.stored('lm_head.weight')


def write_gguf(path, config, weights):
    import gguf  # only this file needs the package
    writer = gguf.GGUFWriter(path, 'deepseek2')
    add_gguf_metadata(writer, gguf, config)
    for name, x in gguf_tensors(config, weights):
        x = np.ascontiguousarray(x)
        if x.dtype == np.uint16:
            writer.add_tensor(name, x.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, x, raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', help='folder to write into')
    parser.add_argument('--seed', type=int, default=20260101)
    parser.add_argument('--only', choices=['hf', 'gguf'], help='write one of the two')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE',
                        help='change a value of the configuration, e.g. --set index_n_heads=64')
    args = parser.parse_args()
    config = dict(CONFIG)
    for change in args.set:
        key, value = change.split('=', 1)
        config[key] = json.loads(value)
    weights = Weights(config, args.seed)
    os.makedirs(args.out, exist_ok=True)
    if args.only != 'gguf':
        write_hugging_face(f'{args.out}/model-hf', config, weights)
    if args.only != 'hf':
        write_gguf(f'{args.out}/deepseek2.bf16.gguf', config, weights)
    parameters = sum(int(np.prod(shape)) for shape, _, _ in weights.table.values())
    print(f'{args.out}: {parameters / 1e9:.2f}B parameters')


if __name__ == '__main__':
    main()
