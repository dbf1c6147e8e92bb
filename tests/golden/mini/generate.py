#!/usr/bin/env python3
"""The numbers of expected.json and demo.json, measured anew with Hugging Face's implementation on the CPU.

  generate.py            measures models/tamis-mini and writes both files
  generate.py --check    measures it, compares with both files and writes nothing; exits 1 where they differ

Needs transformers 5.17 (DeepseekV32ForCausalLM), torch and jinja2 from PyPI; nothing of Tamis. A quarter of an hour of
one core, two thirds of it for bfloat16; `--check --dtypes float32` leaves that out.

What is measured is what both files hold: texts, prompts and questions are read from them, and `method` of expected.json
says how each number is defined. The kinds of attention differ by the indexer's choice alone, so that is what is
replaced. Random choices have a seed of their own for each layer and chunk, but another torch may draw others. The
answers to retrieval questions that came with the first weights are not measured: their questions were not kept.
"""
import argparse
import copy
import hashlib
import json
import math
import pathlib
import sys

import tokenizers
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
MODEL = ROOT / 'models/tamis-mini'
CHUNK = 4096
BLOCK = 512
RANGES = ((1, 255), (256, 1023), (1024, 2047), (2048, 4095))  # tokens of left context
MODES = {'float32': ('sparse', 'dense', 'random', 'window'), 'bfloat16': ('sparse', 'dense', 'window')}
transformers.utils.logging.disable_progress_bar()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Model:
    def __init__(self, dtype):
        self.model, report = transformers.DeepseekV32ForCausalLM.from_pretrained(
            MODEL, dtype=dtype, attn_implementation='sdpa', output_loading_info=True)
        for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
            if report[kind]:
                sys.exit(f'{MODEL}: {kind}: {sorted(report[kind])}')
        self.model.eval()
        self.topk = self.model.config.index_topk
        self.indexers = [layer.self_attn.indexer for layer in self.model.model.layers]

    def choose(self, mode, seed=0):
        """Lets every layer attend by `mode`. What a choice has of later positions, the causal mask takes out again."""
        for layer, indexer in enumerate(self.indexers):
            indexer.__dict__.pop('forward', None)
            if mode != 'sparse':
                indexer.forward = self.replaced(mode, torch.Generator().manual_seed(1000 * seed + layer))

    def replaced(self, mode, generator):
        def forward(hidden, q_resid, rope, mask, *_, **__):
            rows, columns = mask.shape[-2:]
            if mode == 'dense':
                return torch.arange(columns).expand(1, rows, columns)
            if mode == 'window':
                last = torch.arange(columns - rows, columns)[:, None]
                return (last - torch.arange(self.topk)).clamp(min=0)[None]
            scores = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1)
            return scores.topk(min(self.topk, columns)).indices
        return forward

    def forward(self, ids, cache, keep=0):
        """Logits of the last `keep` of the ids, or all, in blocks: of rows by all columns most are for nothing."""
        blocks = [ids[i:i + BLOCK] for i in range(0, len(ids), BLOCK)]
        outs = [self.model(torch.tensor([b]), past_key_values=cache, use_cache=True, logits_to_keep=keep).logits[0]
                for b in blocks]
        return torch.cat(outs)[-keep:].float()

    def losses(self, ids):
        """-log p of tokens 1..n-1, each from all before it."""
        logits = self.forward(ids, transformers.DynamicCache(config=self.model.config))[:-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction='none').double()

    def greedy(self, prompt, tokens, stop):
        ids, margins, new = [], [], prompt
        cache = transformers.DynamicCache(config=self.model.config)
        while len(ids) < tokens and not (ids and ids[-1] == stop):
            best = self.forward(new, cache, keep=1)[0].topk(2)
            new = [best.indices[0].item()]
            ids += new
            margins.append(round((best.values[0] - best.values[1]).item(), 4))
        return ids, margins


def text_losses(model, mode, ids, n_bytes):
    chunks = []
    for start in range(0, len(ids), CHUNK):
        model.choose(mode, start // CHUNK)
        chunks.append(model.losses(ids[start:start + CHUNK]))
    total = torch.cat(chunks)
    place = torch.cat([torch.arange(1, len(c) + 1) for c in chunks])
    mean = total.mean().item()
    return {
        'mean_nll': mean, 'ppl': math.exp(mean), 'count': len(total),
        'bits_per_byte': total.sum().item() / math.log(2) / n_bytes,
        'chunks': [{'tokens': len(c), 'mean_nll': c.mean().item()} for c in chunks],
        'by_position': {f'{a}-{b}': total[(place >= a) & (place <= b)].mean().item() for a, b in RANGES},
    }


def measure(expected, demo, dtypes):
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / 'tokenizer.json'))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    config = json.loads((MODEL / 'config.json').read_text())
    versions = f'transformers {transformers.__version__} DeepseekV32ForCausalLM (sdpa), torch {torch.__version__}, CPU'
    expected['produced_by'] = f'generate.py: {versions}'
    expected['files_sha256'] = {f: sha256((MODEL / f).read_bytes()) for f in expected['files_sha256']}
    demo['made_by'] = f'generate.py: {versions}, float32'

    for dtype in dtypes:
        model = Model(getattr(torch, dtype))
        for text in expected['texts'].values():
            data = (HERE / text['file']).read_bytes()
            ids = encode(data.decode())
            text.update(sha256=sha256(data), n_bytes=len(data), n_tokens=len(ids), ids_sha256_int32le=sha256(
                torch.tensor(ids, dtype=torch.int32).numpy().astype('<i4').tobytes()))
            text['nll'][dtype] = {}
            for mode in MODES[dtype]:
                text['nll'][dtype][mode] = text_losses(model, mode, ids, len(data))
                print(f'{text["file"]} {dtype} {mode}: {text["nll"][dtype][mode]["mean_nll"]:.6f}', flush=True)

    model = Model(torch.float32)
    model.choose('sparse')
    for case in expected['greedy']:
        case['prompt_ids'] = [config['bos_token_id']] + encode(case['prompt'])
        ids, case['top2_logit_margin'] = model.greedy(case['prompt_ids'], 64, stop=None)
        case.update(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=False))
    chat = transformers.AutoTokenizer.from_pretrained(MODEL)
    render = lambda question, thinking: chat.apply_chat_template(
        [{'role': 'user', 'content': question}], tokenize=False, add_generation_prompt=True, thinking=thinking)
    eos = config['eos_token_id']
    for case in expected['chat']:
        case['rendered'] = render(case['question'], case['thinking'])
        case['prompt_ids'] = encode(case['rendered'])
        ids, case['top2_logit_margin'] = model.greedy(case['prompt_ids'], 64, eos)
        case.update(ids=ids, text=tokenizer.decode(ids, skip_special_tokens=False))
        print('right' if case['answer'] in case['text'] else 'WRONG', case['text'])
    question = json.loads((ROOT / demo['question']).read_text())
    prompt = encode(render(question[-1]['content'], thinking=False))
    demo['prompt_tokens'] = len(prompt)
    for mode in ('sparse', 'dense'):
        model.choose(mode)
        ids, margins = model.greedy(prompt, 64, eos)
        demo[mode] = {'ids': ids, 'text': tokenizer.decode(ids), 'top2_logit_margin': [round(m, 2) for m in margins]}
        print('demo', mode, demo[mode]['text'])


def differences(old, new, tolerance, path=''):
    """Lines about every value of `new` that is not that of `old`; numbers within tolerance(path) are the same."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [line for k in old for line in differences(old[k], new[k], tolerance, f'{path}/{k}')]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new)) for line in differences(a, b, tolerance, f'{path}/{i}')]
    numbers = isinstance(old, (int, float)) and isinstance(new, (int, float))
    same = abs(old - new) <= tolerance(path) if numbers else old == new
    return [] if same else [f'{path}: stored {old}, now {new}']


def tolerance(path):
    """What another machine, or another order of summation, may change a number by."""
    if path.endswith('/ppl'):
        return math.inf  # exp(mean_nll)
    if '/random/' in path:
        return 0.1  # other choices
    if 'margin' in path:
        return 0.01
    return 2e-4 if '/float32/' in path else 2e-3  # suggested_tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true')
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'], choices=['float32', 'bfloat16'])
    args = parser.parse_args()
    if not args.check and len(args.dtypes) < 2:
        parser.error('--dtypes: both are needed where the files are written')
    files = {name: HERE / name for name in ('expected.json', 'demo.json')}
    old = {name: json.loads(path.read_text()) for name, path in files.items()}
    old['expected.json'].pop('retrieval', None)
    new = copy.deepcopy(old)
    with torch.inference_mode():
        measure(new['expected.json'], new['demo.json'], args.dtypes)
    if not args.check:
        for name, path in files.items():
            path.write_text(json.dumps(new[name], indent=1, ensure_ascii=False) + '\n')
        return
    for made in 'produced_by', 'made_by':
        for tree in old, new:
            for part in tree.values():
                part.pop(made, None)
    lines = differences(old, new, tolerance)
    print('\n'.join(lines) or 'all as stored')
    sys.exit(bool(lines))


if __name__ == '__main__':
    main()
