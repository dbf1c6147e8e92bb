#!/usr/bin/env python3
"""Conversations in which something is looked up, for the small model of docs/mini-training.md.

  recipes/mini/chat.py OUT.jsonl --seed 1 --tokens 4000000 --kind kv --shortest 60 --longest 1900
  recipes/mini/chat.py OUT.jsonl --seed 2 --tokens 4000000 --kind needle --text prose.jsonl ...
  tamis data build --chat --chat-format v3.2 -t models/tamis-mini -o data/chat OUT.jsonl

kv: lines "brave-paper = 730264", then questions for some of them. needle: lines of documentation with
"The secret code of Lisbon is 730264." among them, then questions for these. The first question stands
below the lines, others are turns of their own. A part of the last answers has a thought, the line that
was found. v3.2 writes thoughts; without them, and in last turns, it writes what V3.1 does.
"""
import argparse
import json
import math
import random

QUALITIES = '''amber ancient black blue calm clear clever cold coral crimson curious damp dark deep dusty eager early
empty fading fast fierce giant golden grand green happy hidden hollow icy idle iron ivory jolly keen kind large lazy
light little lone lost loud lucky mellow misty modest narrow old olive pale plain polite proud purple rapid rare rough
royal shiny short silent silver slow solid steady stormy swift tame tidy tiny vast warm brave bright broad busy crisp
dry fair fine firm flat fresh gentle gray great heavy high hot humble long low mild neat new noble odd open orange pink
pure quick quiet red rich ripe round rusty safe salty sharp simple small smooth soft spare still strong sweet tall thick
thin tough true violet white wide wild windy wise wooden yellow young'''.split()
THINGS = '''anchor apple arrow badger basin beacon bear bell bird boat bottle branch brook bucket cabin camel candle
canyon cave cedar chain cliff coast comet crane crow crystal dawn desert door dragon dune eagle ember engine falcon
feather fern field forest fox garden harbor hill horse island kettle lake lantern leaf lemon lion lizard maple marble
meadow mirror moon night orchid paper pebble pilot planet prairie rabbit raven reef river robin rocket root sail salmon
scarf shadow shell ship shore sparrow spring stone storm summit temple tiger tower trail train tree valley wagon water
wave whale willow window winter wolf autumn barrel basket bench berry blade board book box bread bridge brush button
cable cake card castle cat chair cloud coat corn cotton cup desk dish dog drum duck ear farm fence fire fish flag flower
flute fork frog gate glass glove goat grain grape grass hammer hat hen honey hook house ice ink jacket jaguar jar key
kite knife ladder lamp lock map mask milk mill mouse nail needle nest nut oak oven owl pan park pear pen pepper piano
pine pipe plate plum pond pot rain ring road roof room rope rose salt sand seal seed sheep shirt shoe snow soup spoon
star steam straw street sugar sun swan table tail tea tent thread thumb ticket tin toad toast town toy turtle vase
village violin wall wheat wheel wind wine wing wire wood wool yard'''.split()
NAMES = '''Alice Anna Bella Bruno Carla Clara Daniel David Elena Emil Felix Flora Frank Grace Greta Henry Hugo Ida Irene
Ivan Jacob Jonas Julia Karen Karl Laura Leo Lucy Maria Martin Mona Nina Nora Olga Oscar Otto Paul Petra Quentin Rita
Robert Rosa Sarah Simon Sofia Theo Tina Tom Ulla Uwe Vera Victor Walter Wendy Xenia Yvonne Zara'''.split()
CITIES = '''Athens Berlin Lisbon London Madrid Oslo Paris Prague Rome Tokyo Vienna Warsaw Amsterdam Ankara Baghdad Bangkok
Beirut Belgrade Bern Bogota Boston Brussels Budapest Cairo Calgary Chicago Copenhagen Dakar Delhi Denver Dublin Geneva
Hamburg Hanoi Havana Helsinki Istanbul Jakarta Kiev Kyoto Lagos Lima Lyon Manila Milan Montreal Moscow Munich Nairobi
Naples Osaka Ottawa Porto Quito Riga Santiago Seattle Seoul Sofia Stockholm Sydney Tallinn Tehran Toronto Tunis Turin
Valencia Venice Vilnius Zagreb Zurich'''.split()
FEW = 99, 72                # things and qualities of half of the conversations
SHARES = 0.375, 0.5, 0.7    # of the values that are words: half in the mean
LINE = 11.1   # tokens of a line of kv and its share of questions, in the mean
TOKEN = 3.45  # bytes of a token of documentation, on the small side


class Maker:
    def __init__(self, seed, texts, alike=0):
        self.r, self.texts, self.alike = random.Random(seed), texts, alike

    def digits(self, n):
        return str(self.r.randrange(10 ** (n - 1), 10 ** n))

    def words(self):
        """Half of the conversations have few words, so that lines are alike; the others all of them."""
        return (THINGS[:FEW[0]], QUALITIES[:FEW[1]]) if self.r.random() < 0.5 else (THINGS, QUALITIES)

    def key(self, things, qualities, names=NAMES):
        r, c = self.r, self.r.choice
        form = r.randrange(8)
        if form == 0:
            return f'{c(things).upper()}_{self.digits(3)}'
        if form == 1:
            return f'{c(things)}.{c(qualities)}.{c(things)}'
        if form == 2:
            return f'{c(names)} {c(things)}'
        if form == 3:
            return f'{c(qualities)}_{c(things)}_{self.digits(2) if r.random() < 0.9 else self.digits(1)}'
        return f'{c(qualities)}-{c(things)}'

    def value(self, things, qualities, share):
        """A word or two with that share, two of three one."""
        r, c = self.r, self.r.choice
        if r.random() < share:
            return c(things) if r.random() < 2 / 3 else f'{c(qualities)} {c(things)}'
        form = r.randrange(12)
        if form == 0:
            return f'{r.randrange(65536):04x}'
        return self.digits(5 if form == 1 else 6)

    def kv(self, tokens, most):
        n = max(2, int(tokens / LINE))
        words, share = self.words(), self.r.choice(SHARES)
        key_words = words
        if self.alike and self.r.random() < self.alike:
            few = max(3, round(math.sqrt(n) * self.r.uniform(0.8, 2)))
            last = self.r.choice('aaaelnor')
            pools = *words, [name for name in NAMES if name[-1] == last]
            key_words = [self.r.sample(w, min(few, len(w))) for w in pools]
        entries = {}
        while len(entries) < n:
            entries.setdefault(self.key(*key_words), self.value(*words, share))
        body = ''.join(f'{k} = {v}\n' for k, v in entries.items())
        keys = self.r.sample(list(entries), min(n, most))
        return body, [(f'What is the value of {k}?', entries[k], f'{k} = {entries[k]}') for k in keys]

    def needle(self, tokens, most):
        r = self.r
        left = int(tokens * TOKEN)
        lines = []
        while left > 0:
            text = r.choice(self.texts)
            # From some line on, and of another text if it is short.
            begin = text.rfind('\n', 0, r.randrange(len(text))) + 1
            part = text[begin:begin + left].split('\n')
            lines += part[:-1] if len(part) > 1 else part
            left -= sum(len(p.encode()) + 1 for p in part)
        cities = r.sample(CITIES, most)
        found = []
        for city in cities:
            line = f'The secret code of {city} is {self.digits(6)}.'
            lines.insert(r.randrange(len(lines) + 1), line)
            found.append((f'What is the secret code of {city}?', line.rsplit(' ', 1)[1][:-1], line))
        return '\n'.join(lines) + '\n', found

    def short(self):
        """One question: seven of ten about a code, on its line or after a few others, with the thought "Lisbon = 730264"."""
        r = self.r
        if r.random() < 0.7:
            city, code = r.choice(CITIES), self.digits(6)
            lines = []
            for _ in range(r.choice([0, 0, 0, 1, 3, 8])):
                text = r.choice(self.texts)
                begin = text.rfind('\n', 0, r.randrange(len(text))) + 1
                lines.append(text[begin:begin + 120].split('\n')[0])
            lines.insert(r.randrange(len(lines) + 1), f'The secret code of {city} is {code}.')
            question = '\n'.join(lines) + r.choice(['\n\n', '\n', ' ', '\n\n']) + f'What is the secret code of {city}?'
            answer, thought, share = code, f'{city} = {code}', 0.65
        else:
            body, found = self.kv(r.choice([30, 60, 120, 240]), 1)
            question, answer, thought = found[0]
            question, share = body + '\n' + question, 0.5
        messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
        if r.random() < share:
            messages[1]['reasoning_content'] = thought
        return messages, len(question) / TOKEN

    def conversation(self, kind, shortest, longest, questions, thoughts):
        r = self.r
        if kind == 'short':
            return self.short()
        tokens = math.exp(r.uniform(math.log(shortest), math.log(longest)))
        # One question in a quarter of them, as in the tests; the others make more of the text above.
        most = 1 if r.random() < 0.25 else 1 + r.randrange(questions)
        body, found = (self.kv if kind == 'kv' else self.needle)(tokens - 24 * most, most)
        messages = []
        for i, (question, answer, line) in enumerate(found):
            messages.append({'role': 'user', 'content': (body + '\n' if i == 0 else '') + question})
            messages.append({'role': 'assistant', 'content': answer})
        if r.random() < thoughts:
            messages[-1]['reasoning_content'] = found[-1][2]
        return messages, tokens


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out')
    p.add_argument('--seed', type=int, default=1)
    p.add_argument('--tokens', type=float, default=4e6, help='about so many in all')
    p.add_argument('--kind', choices=('kv', 'needle', 'short'), default='kv')
    p.add_argument('--shortest', type=int, default=60, help='tokens of a conversation')
    p.add_argument('--longest', type=int, default=1900)
    p.add_argument('--questions', type=int, default=12, help='at most, in a conversation')
    p.add_argument('--thoughts', type=float, default=0.25, help='share of conversations that end with one')
    p.add_argument('--alike', type=float, default=0, help='share of kv whose names are made of few words, so that most '
                   'differ from others by one of them')
    p.add_argument('--text', help='JSONL that needles are hidden in')
    args = p.parse_args()
    texts = []
    if args.kind != 'kv':
        with open(args.text, encoding='utf-8') as f:
            texts = [json.loads(line)['text'] for line in f]
    maker, left = Maker(args.seed, texts, args.alike), args.tokens
    with open(args.out, 'w', encoding='utf-8') as f:
        while left > 0:
            messages, tokens = maker.conversation(args.kind, args.shortest, args.longest, args.questions, args.thoughts)
            f.write(json.dumps(messages, ensure_ascii=False) + '\n')
            left -= tokens


if __name__ == '__main__':
    main()
