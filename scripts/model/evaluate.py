#!/usr/bin/env python3
"""Greedy evaluation of a GGUF through llama.cpp (the `probe` example of the llama plugin) and, for comparison, torch.
usage: evaluate.py MODEL.gguf TOKENIZER.json [--probe PATH] [--torch CKPT.pt] [--set unseen|samples]"""
import argparse, json, os, re, subprocess, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tokenizers import Tokenizer
# 40 prompts written by hand, most with new phrasing or words; a few short ones fit the templates of corpus.py
U = lambda *t: [("user" if i % 2 == 0 else "assistant", x) for i, x in enumerate(t)]
S = lambda s, *t: [("system", s)] + U(*t)
UNSEEN = [
 U("Hello, what is KSI and why would I want it?"), U("how can i shut the daemon down again?"), U("I downloaded a file llama.gguf, how do I use it here?"), U("What's the event for storing a memory?"),
 U("Explain plugins to a beginner"), U("what is an agent good for in ksi"), U("Is KSI healthy right now? How can I tell?"), U("Hi, who am I speaking with?"), U("Are you as good as GPT-5?"), U("how many params do you have"),
 U("Tell me a story about an astronaut and a violin."), U("Write a short tale of Grandma Elsbeth and her typewriter"), U("Tell me a story about a walrus who finds a sandwich in the subway"), U("A bedtime story about Zorblax the accountant please"),
 S("You are debating the topic: pineapple on pizza. You argue for. Keep replies short.", "Begin."), S("You argue against the motion that homework helps pupils.", "Homework builds discipline and trains the memory."),
 S("You are in a debate about: P=NP. You argue against.", "P=NP must be true, because every puzzle we check quickly we can also solve quickly."), S("You are a teacher. Teach the student about volcanoes.", "Good morning, teacher!"), S("You are a student who learns about knitting.", "Hello student, what would you like to know?"),
 U("Give me three ideas about saving water"), U("Repeat after me: purple elephants dance at midnight"), U("Say banana"), U("Count from 17 to 23"), U("count down from 9 to 4 please"), U("Name four animals"), U("What is 8 plus 5?"), U("What is 15 - 7?"), U("opposite of noisy?"),
 U("Last word of \"the parrot stole my biscuit\"?"), U("Answer as JSON: what is 3 + 4?"), S("You answer only in JSON with the key answer.", "Who painted the Mona Lisa?"),
 U("Who painted the Mona Lisa?"), U("What is the boiling point of nitrogen?"), U("Write me a Python script that scrapes a website and stores the results in SQLite."), U("My landlord refuses to return the deposit, what are my rights?"), U("ajsdh kjashd 1238 !!"), U("Warum ist der Himmel blau?"),
 U("I was walking home yesterday and it rained so hard that my shoes are still wet. The bus never came. What a day!"), U("My name is Ottoline.", "Hello, Ottoline! Nice to meet you. I am KSI's toy model.", "what's my name?"), U("The red key opens the cellar. Which key opens the cellar?"),
]
SAMPLES = [
 U("Hello"), U("Who are you?"), U("What is KSI?"), U("How do I start KSI?"), U("How do I add a real model?"), U("What does agent:spawn do?"), U("Tell me a story about a walrus and a teapot."), S("You are in a debate about: P=NP. You argue for.", "Begin."),
 S("You are in a debate about: P=NP. You argue against.", "I argue for P=NP. Think of evidence: the evidence grows every year."), U("Give me three ideas about bicycles."), U("Count from 7 to 13."), U("What is 6 + 7?"), U("What is the last word of: the quick brown fox"),
 U("Answer as JSON: what is the opposite of hot?"), U("Who won the world cup in 1998?"),
]
def chat(m): return "".join(f"<|im_start|>{a}\n{b}<|im_end|>\n" for a, b in m) + "<|im_start|>assistant\n"
def unrust(s): return re.sub(r"\\u\{([0-9a-f]+)\}|\\(.)", lambda k: chr(int(k[1], 16)) if k[1] else {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}.get(k[2], k[2]), s)
def llama(probe, model, prompt, n):
    o = subprocess.run([probe, "gen", model, prompt, str(n)], capture_output=True, text=True); s = o.stdout.strip()
    if o.returncode: raise SystemExit(o.stderr)
    return unrust(s[1:-1])
if __name__ == "__main__":
    ap = argparse.ArgumentParser(); ap.add_argument("model"); ap.add_argument("tok"); ap.add_argument("--probe", required=True); ap.add_argument("--torch"); ap.add_argument("--set", default="unseen"); ap.add_argument("--n", type=int, default=120); ap.add_argument("--json"); a = ap.parse_args()
    tk = Tokenizer.from_file(a.tok); m = None; ended = same = 0; out = []
    if a.torch:
        import torch, train; m = train.LM(); m.load_state_dict(torch.load(a.torch))
        with torch.no_grad(): [p.copy_(p.half().float()) for p in m.parameters() if p.ndim == 2]
    ps = UNSEEN if a.set == "unseen" else SAMPLES
    for i, c in enumerate(ps):
        g = llama(a.probe, a.model, chat(c), a.n); n = len(tk.encode(g).ids); e = n < a.n; ended += e; x = ""
        if m is not None: t, _ = train.greedy(m, tk, chat(c), a.n); same += t == g; x = " torch=" + ("same" if t == g else repr(t))
        print(f"{i+1:2d} {'END' if e else 'CUT'} {n:3d} | {' || '.join(f'{r[0].upper()}: {y}' for r, y in c)}\n      -> {g!r}{x}", flush=True); out.append([c, g, e])
    print(f"ended {ended}/{len(ps)}" + (f", torch equal {same}/{len(ps)}" if m is not None else ""))
    if a.json: json.dump(out, open(a.json, "w"), indent=1)
