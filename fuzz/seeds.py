#!/usr/bin/env python3
"""Writes the hand-made part of the corpora: one file for each thing that a peer or a file may get wrong.

Standard library only, and deterministic. What a fuzzer adds beside these files stays untouched.
"""

import hashlib
import json as encoder
import pathlib
import struct

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "kernel/protocol/tests/golden"


def write(target, name, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def compact(value):
    return encoder.dumps(value, separators=(",", ":"))


def framed(body):
    return struct.pack(">I", len(body)) + body


def frame():
    for path in sorted(GOLDEN.glob("*.hex")):
        write("frame", f"golden-{path.stem}", bytes.fromhex(path.read_text()))
    cancel = b"\x81\xa6cancel\x81\xa2id\x01"
    head = b"\x81\xa6cancel\x82\xa2id\x01\xa3new"
    reply = b"\x81\xa5reply\x82\xa2id\x01\xa4data"
    bad = {
        "empty-body": b"",
        "empty-map": b"\x80",
        "two-kinds": b"\x82\xa6cancel\x81\xa2id\x01\xa4ping\x81\xa2id\x01",
        "kind-unknown": b"\x81\xa6custom\x81\xa2id\x01",
        "kind-by-number": b"\x81\x06\x81\xa2id\x01",
        "kind-as-array": b"\x91\xa6cancel",
        "kind-not-utf8": b"\x81\xa6can\xff\xfel\x81\xa2id\x01",
        "kind-without-fields": b"\xa6cancel",
        "unit-with-fields": b"\x81\xa5ready\x80",
        "fields-by-position": b"\x81\xa6cancel\x91\x01",
        "field-missing": b"\x81\xa6cancel\x80",
        "field-twice": b"\x81\xa6cancel\x82\xa2id\x01\xa2id\x02",
        "field-nil": b"\x81\xa6cancel\x81\xa2id\xc0",
        "id-negative": b"\x81\xa6cancel\x81\xa2id\xff",
        "id-text": b"\x81\xa6cancel\x81\xa2id\xa11",
        "id-float": b"\x81\xa6cancel\x81\xa2id\xcb\x3f\xf0\0\0\0\0\0\0",
        "credit-too-large": b"\x81\xa6credit\x82\xa2id\x01\xa1n\xcf\0\0\0\x01\0\0\0\0",
        "payload-map": reply + b"\x80",
        "payload-text": reply + b"\xa2hi",
        "payload-cut": reply + b"\xc6\x00\x00\xff\xffx",
        "payload-empty": reply + b"\xc4\x00",
        "payload-reserved": reply + b"\xc4\x01\xc1",
        "unknown-field": head + b"\x92\x01\x81\xa1a\xc4\x01x",
        "unknown-ext": head + b"\xc7\x02\x05ab",
        "unknown-reserved": head + b"\xc1",
        "depth-at-limit": head + b"\x91" * 63 + b"\x01",
        "depth-beyond": head + b"\x91" * 64 + b"\x01",
        "depth-bomb": head + b"\x91" * 5000,
        "depth-bomb-maps": head + b"\x81\xa0" * 3000,
        "huge-array": head + b"\xdd\xff\xff\xff\xff",
        "huge-map": head + b"\xdf\xff\xff\xff\xff",
        "huge-text": head + b"\xdb\xff\xff\xff\xff",
        "trailing": cancel + b"\x01",
        "event-not-a-name": b"\x81\xa7request\x83\xa2id\x01\xa5event\xa1x\xa4data\xc4\x01\x80",
        "event-too-long": b"\x81\xa7request\x83\xa2id\x01\xa5event\xd9\xc8" + b"a:" * 100 + b"\xa4data\xc4\x01\x80",
        "class-unknown": b"\x81\xa9subscribe\x83\xa2id\x01\xa7pattern\xa3a:*\xa5class\xa4fast",
        "code-unknown": b"\x81\xa7refusal\x81\xa7refusal\x82\xa4code\xa5never\xa7message\xa1x",
        "json": b'{"cancel":{"id":1}}',
    }
    for name, body in bad.items():
        write("frame", name, framed(body) + framed(cancel))
    write("frame", "prefix-zero-twice", bytes(8))
    write("frame", "prefix-over-limit", b"\x01\x00\x00\x00")
    write("frame", "prefix-at-limit-alone", b"\x00\xff\xff\xff")
    write("frame", "prefix-all-ones", b"\xff\xff\xff\xff\xff")
    write("frame", "prefix-cut", b"\x00\x00")
    write("frame", "body-cut", framed(cancel)[:-1])
    write("frame", "http", "GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def json():
    lines = {
        "shortest": '{"event":"system:health"}',
        "full": '{"id":"x","event":"completion:request","data":{"prompt":"hi"},"timeout_ms":5000,"credit":4,'
        '"correlation_id":"c","idempotency_key":"k","expires_in_ms":600000}',
        "emit": '{"emit":"my:event","data":[1,2.5,null,true,"\\u00e9\\ud83d\\ude00"]}',
        "subscribe": '{"subscribe":"agent:*","id":3,"class":"latest"}',
        "unsubscribe": '{"unsubscribe":3}',
        "cancel": '{"cancel":"x"}',
        "credit": '{"credit":"x","n":5}',
        "numbers": '{"event":"a:b","data":[18446744073709551615,-9223372036854775808,1e308,1e999,-0.0,0.1]}',
        "nulls": '{"event":"a:b","data":null,"id":null,"timeout_ms":null}',
        "carriage-return": '{"event":"a:b"}\r',
        "empty": "",
        "blank": "   ",
        "cut": '{"event":"a:b"',
        "two": '{"event":"a:b"}{"event":"a:b"}',
        "array": "[1]",
        "text": '"event"',
        "nothing-asked": '{"data":{}}',
        "two-verbs": '{"event":"a:b","emit":"c:d"}',
        "unknown-key": '{"event":"a:b","dta":{}}',
        "id-array": '{"event":"a:b","id":[1]}',
        "id-bool": '{"event":"a:b","id":true}',
        "event-number": '{"event":5}',
        "event-bad": '{"event":"A:b"}',
        "pattern-bad": '{"subscribe":"a:b*"}',
        "class-bad": '{"subscribe":"a:*","class":"fast"}',
        "timeout-negative": '{"event":"a:b","timeout_ms":-1}',
        "credit-null": '{"credit":null}',
        "surrogate": '{"event":"a:b","data":"\\ud800"}',
        "depth-at-limit": '{"event":"a:b","data":' + "[" * 64 + "]" * 64 + "}",
        "depth-beyond": '{"event":"a:b","data":' + "[" * 65 + "]" * 65 + "}",
        "depth-bomb": "[" * 5000,
        "depth-bomb-objects": '{"a":' * 3000,
        "key-twice": '{"event":"a:b","event":"c:d"}',
        "newline-inside": '{"event":"a:b","data":"\\n"}',
    }
    for name, line in lines.items():
        write("json", name, line)
    write("json", "not-utf8", b'{"event":"a:b","data":"\xff\xfe"}')
    write("json", "byte-order-mark", b'\xef\xbb\xbf{"event":"a:b"}')
    write("json", "nul", b'{"event":"a:b\0"}')
    # The same target reads its input as a payload too.
    write("json", "payload-bytes", b"\x82\x01\xc4\x02\x01\x02\xa1n\xcb\x7f\xf8\0\0\0\0\0\0")
    write("json", "payload-ext", b"\xc7\x02\x05ab")
    write("json", "payload-time", b"\xd6\xff\0\0\0\0")
    write("json", "payload-text-not-utf8", b"\xa2\xff\xfe")
    write("json", "payload-maps-as-keys-deep", b"\x81" * 60 + bytes(120))
    write("json", "payload-map-as-key", b"\x81\x81\x01\x02\x03")
    write("json", "payload-trailing", b"\x80\x80")


def pattern():
    pairs = {
        "everything": ("*", "a:b:c"),
        "any-number": ("**", "a:b"),
        "one": ("a:*", "a:b"),
        "one-not-two": ("a:*", "a:b:c"),
        "inner": ("a:**:c", "a:b:b:c"),
        "inner-none": ("a:**:c", "a:c"),
        "end-none": ("a:b:**", "a:b"),
        "all-doubles": ("**:**:**:**:**:**:**:**", "a:a:a:a:a:a:a:a"),
        "backtrack": ("**:a:**:a:**:a:**:b", "a:a:a:a:a:a:a:a"),
        "literal": ("a:b", "a:b"),
        "literal-other": ("a:b", "a:bc"),
        "nine": ("a:b:c:d:e:f:g:h:i", "a:b"),
        "three-stars": ("***", "a:b"),
        "star-inside": ("a:b*", "a:b"),
        "empty": ("", "a:b"),
        "empty-segment": ("a::b", "a:b"),
        "upper": ("A:*", "A:b"),
        "not-ascii": ("ä:*", "ä:b"),
        "longest": ("a:" + "b" * 126, "a:" + "b" * 126),
        "too-long": ("a:" + "b" * 127, "a:b"),
        "newline": ("a:*\n", "a:b"),
    }
    for name, (wanted, event) in pairs.items():
        write("pattern", name, f"{wanted}\n{event}")


def text(value):
    return struct.pack("<Q", len(value)) + value


def entry(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


U32, F32, BOOL, TEXT, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def gguf_file(entries, tensors, magic=b"GGUF", version=3, tensor_count=None, entry_count=None, tail=b""):
    head = magic + struct.pack("<I", version)
    head += struct.pack("<QQ", len(tensors) if tensor_count is None else tensor_count,
                        len(entries) if entry_count is None else entry_count)
    return head + b"".join(entries) + b"".join(tensors) + tail


def tensor(name, shape, kind=0, offset=0, dimensions=None):
    head = text(name) + struct.pack("<I", len(shape) if dimensions is None else dimensions)
    return head + b"".join(struct.pack("<Q", n) for n in shape) + struct.pack("<IQ", kind, offset)


def array(kind, items, count=None):
    return struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


def llama_entries(**changes):
    entries = {
        "general.architecture": (TEXT, text(b"llama")),
        "general.name": (TEXT, text(b"seed")),
        "general.alignment": (U32, struct.pack("<I", 32)),
        "llama.block_count": (U32, struct.pack("<I", 1)),
        "llama.context_length": (U32, struct.pack("<I", 64)),
        "llama.embedding_length": (U32, struct.pack("<I", 8)),
        "llama.feed_forward_length": (U32, struct.pack("<I", 16)),
        "llama.attention.head_count": (U32, struct.pack("<I", 2)),
        "llama.attention.layer_norm_rms_epsilon": (F32, struct.pack("<f", 1e-5)),
        "tokenizer.ggml.model": (TEXT, text(b"gpt2")),
        "tokenizer.ggml.pre": (TEXT, text(b"gpt-2")),
        "tokenizer.ggml.tokens": (ARRAY, array(TEXT, [text(b"a"), text(b"b"), text(b"<eos>")])),
        "tokenizer.ggml.token_type": (ARRAY, array(5, [struct.pack("<i", n) for n in (1, 1, 3)])),
        "tokenizer.ggml.merges": (ARRAY, array(TEXT, [text(b"a b")])),
        "tokenizer.ggml.eos_token_id": (U32, struct.pack("<I", 2)),
    }
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            entries.pop(key, None)
        else:
            entries[key] = value
    return [entry(key.encode(), kind, value) for key, (kind, value) in entries.items()]


def gguf_header():
    weights = [tensor(b"token_embd.weight", [8, 3])]
    good = gguf_file(llama_entries(), weights)
    padded = good + bytes(-len(good) % 32) + bytes(96)
    write("gguf_header", "whole", padded)
    for at in (0, 3, 4, 8, 23, 24, 40, len(good) // 2, len(good) - 1):
        write("gguf_header", f"cut-at-{at}", good[:at])
    huge = struct.pack("<Q", 1 << 60)
    cases = {
        "magic-wrong": gguf_file([], [], magic=b"GGML"),
        "magic-reversed": gguf_file([], [], magic=b"FUGG"),
        "version-0": gguf_file([], [], version=0),
        "version-1": gguf_file([], [], version=1),
        "version-2": gguf_file(llama_entries(), weights, version=2),
        "version-huge": gguf_file([], [], version=0xFFFFFFFF),
        "version-big-endian": gguf_file([], [], version=0x03000000),
        "entries-2-60": gguf_file(llama_entries(), weights, entry_count=1 << 60),
        "tensors-2-60": gguf_file(llama_entries(), weights, tensor_count=1 << 60),
        "nothing-inside": gguf_file([], []),
        "key-twice": gguf_file(llama_entries() + llama_entries()[:1], weights),
        "key-empty": gguf_file([entry(b"", U32, bytes(4))], []),
        "key-length-2-60": gguf_file([huge], [], entry_count=1),
        "key-not-utf8": gguf_file([entry(b"\xff\xfe", U32, bytes(4))], []),
        "value-kind-unknown": gguf_file([entry(b"a", 99, bytes(4))], []),
        "text-length-2-60": gguf_file([entry(b"a", TEXT, huge)], []),
        "bool-2": gguf_file([entry(b"a", BOOL, b"\x02")], []),
        "array-length-2-60": gguf_file([entry(b"a", ARRAY, array(U32, [], 1 << 60))], []),
        "array-of-texts-2-60": gguf_file([entry(b"a", ARRAY, array(TEXT, [], 1 << 60))], []),
        "array-of-arrays": gguf_file([entry(b"a", ARRAY, array(ARRAY, [array(U32, [bytes(4)])]))], []),
        "array-kind-unknown": gguf_file([entry(b"a", ARRAY, array(77, [], 1))], []),
        "alignment-0": gguf_file(llama_entries(general__alignment=(U32, bytes(4))), weights),
        "alignment-7": gguf_file(llama_entries(general__alignment=(U32, struct.pack("<I", 7))), weights),
        "alignment-text": gguf_file(llama_entries(general__alignment=(TEXT, text(b"32"))), weights),
        "architecture-missing": gguf_file(llama_entries(general__architecture=None), weights),
        "architecture-number": gguf_file(llama_entries(general__architecture=(U32, bytes(4))), weights),
        "blocks-0": gguf_file(llama_entries(llama__block_count=(U32, bytes(4))), weights),
        "blocks-100000": gguf_file(llama_entries(llama__block_count=(U32, struct.pack("<I", 100_000))), weights),
        "context-0": gguf_file(llama_entries(llama__context_length=(U32, bytes(4))), weights),
        "eos-beyond-vocabulary": gguf_file(
            llama_entries(tokenizer__ggml__eos_token_id=(U32, struct.pack("<I", 3))), weights),
        "token-twice": gguf_file(
            llama_entries(tokenizer__ggml__tokens=(ARRAY, array(TEXT, [text(b"a")] * 3))), weights),
        "token-types-too-few": gguf_file(
            llama_entries(tokenizer__ggml__token_type=(ARRAY, array(5, [bytes(4)]))), weights),
        "merge-without-space": gguf_file(
            llama_entries(tokenizer__ggml__merges=(ARRAY, array(TEXT, [text(b"ab")]))), weights),
        "heads-0": gguf_file(llama_entries(**{"llama__attention__head_count": (U32, bytes(4))}), weights),
        "tensor-dimensions-0": gguf_file(llama_entries(), [tensor(b"t", [])]),
        "tensor-dimensions-99": gguf_file(llama_entries(), [tensor(b"t", [1], dimensions=99)]),
        "tensor-size-overflow": gguf_file(llama_entries(), [tensor(b"t", [1 << 32, 1 << 32, 1 << 32])]),
        "tensor-dimension-0": gguf_file(llama_entries(), [tensor(b"t", [0, 4])]),
        "tensor-kind-unknown": gguf_file(llama_entries(), [tensor(b"t", [32], kind=999)]),
        "tensor-offset-odd": gguf_file(llama_entries(), [tensor(b"t", [32], offset=5)]),
        "tensor-offset-2-63": gguf_file(llama_entries(), [tensor(b"t", [32], offset=1 << 63)]),
        "tensor-twice": gguf_file(llama_entries(), weights * 2),
        "tensor-overlap": gguf_file(llama_entries(), weights + [tensor(b"u", [8, 3], offset=32)], tail=bytes(256)),
        "tensor-name-long": gguf_file(llama_entries(), [tensor(b"t" * 64, [32])]),
        "tensor-name-empty": gguf_file(llama_entries(), [tensor(b"", [32])]),
        "quantized-row-cut": gguf_file(llama_entries(), [tensor(b"t", [33], kind=8)]),
        "data-missing": gguf_file(llama_entries(), [tensor(b"t", [1 << 20])]),
    }
    for name, data in cases.items():
        write("gguf_header", name, data)
    for name, data in (model_cases(weights) | adapter_cases()).items():
        write("gguf_header", name, data)


def model_cases(weights):
    def changed(**entries):
        return gguf_file(llama_entries(**entries), weights)

    def tokens(*texts):
        return ARRAY, array(TEXT, [text(one) for one in texts])

    def kinds(*numbers):
        return ARRAY, array(5, [struct.pack("<i", n) for n in numbers])

    def u32(number):
        return U32, struct.pack("<I", number)

    integers = [(0, "<B"), (1, "<b"), (2, "<H"), (3, "<h"), (4, "<I"), (5, "<i"), (10, "<Q"), (11, "<q")]
    every = {f"a__{kind}": (kind, struct.pack(form, 1)) for kind, form in integers}
    heads = {f"b__{kind}__attention__head_count": (ARRAY, array(kind, [struct.pack(form, 1)] * 2))
             for kind, form in integers}
    return {
        "every-kind-of-value": changed(**every, **heads, c__12=(12, bytes(8)), c__6=(F32, bytes(4))),
        "heads-by-layer": changed(
            llama__attention__head_count=(ARRAY, array(U32, [struct.pack("<I", n) for n in (1, 2)]))),
        "heads-by-layer-negative": changed(
            llama__attention__head_count_kv=(ARRAY, array(5, [struct.pack("<i", -1)]))),
        "heads-by-layer-none": changed(llama__attention__head_count=(ARRAY, array(U32, []))),
        "heads-text": changed(llama__attention__head_count=(TEXT, text(b"2"))),
        "context-2-63": changed(llama__context_length=(U64, struct.pack("<Q", 1 << 63))),
        "embedding-beyond": changed(llama__embedding_length=u32((1 << 20) + 1)),
        "largest-of-all": changed(
            llama__block_count=u32(512), llama__context_length=u32(1 << 31),
            llama__embedding_length=u32(1 << 20), llama__attention__head_count=u32(0xFFFFFFFF),
            llama__attention__key_length=u32(0xFFFFFFFF), llama__attention__value_length=u32(0xFFFFFFFF)),
        "split": changed(split__count=(2, b"\x03\x00"), split__no=(2, b"\x01\x00")),
        "split-of-one": changed(split__count=(2, b"\x01\x00")),
        "file-type": changed(general__file_type=u32(7)),
        "file-type-unknown": changed(general__file_type=u32(4096)),
        "reads-both-ways": changed(llama__attention__causal=(BOOL, b"\x00")),
        "pooling-last": changed(llama__pooling_type=u32(3)),
        "pooling-ranks": changed(llama__pooling_type=u32(4)),
        "no-vocabulary": changed(tokenizer__ggml__model=(TEXT, text(b"none"))),
        "vocabulary-of-numbers": changed(tokenizer__ggml__tokens=(ARRAY, array(U32, [bytes(4)]))),
        "vocabulary-empty": changed(tokenizer__ggml__tokens=tokens()),
        "token-ends-at-nul": changed(tokenizer__ggml__tokens=tokens(b"a", b"a\0b", b"c")),
        "tokens-empty": changed(tokenizer__ggml__tokens=tokens(b"", b"[EMPTY_0]", b"c")),
        "byte-tokens": changed(
            tokenizer__ggml__tokens=tokens(b"<0xAF>", b"<0x09>", b"c"),
            tokenizer__ggml__token_type=kinds(6, 6, 1)),
        "byte-token-lower": changed(
            tokenizer__ggml__tokens=tokens(b"<0xaf>", b"b", b"c"),
            tokenizer__ggml__token_type=kinds(6, 1, 1)),
        "scores": changed(tokenizer__ggml__scores=(ARRAY, array(F32, [bytes(4)] * 3))),
        "scores-too-few": changed(tokenizer__ggml__scores=(ARRAY, array(F32, [bytes(4)]))),
        "scores-of-integers": changed(tokenizer__ggml__scores=(ARRAY, array(U32, [bytes(4)] * 3))),
        "merges-of-numbers": changed(tokenizer__ggml__merges=(ARRAY, array(U32, [bytes(4)]))),
        "template": changed(tokenizer__chat_template=(TEXT, text(b"{{ messages }}"))),
    }


def adapter_cases():
    def adapter(tensors, **changes):
        entries = {
            "general.architecture": (TEXT, text(b"llama")),
            "general.type": (TEXT, text(b"adapter")),
            "adapter.type": (TEXT, text(b"lora")),
            "adapter.lora.alpha": (F32, struct.pack("<f", 16.0)),
        } | {key.replace("__", "."): value for key, value in changes.items()}
        return gguf_file([entry(key.encode(), *value) for key, value in entries.items()], tensors)

    def pair(of=b"blk.0.attn_q.weight", ranks=(4, 4), kind=0):
        return [tensor(of + b".lora_a", [8, ranks[0]], kind),
                tensor(of + b".lora_b", [ranks[1], 8], kind, offset=128)]

    return {
        "adapter": adapter(pair()),
        "adapter-with-norms": adapter(pair() + [tensor(b"output_norm.weight", [8], offset=256)]),
        "adapter-of-no-kind": adapter(pair(), adapter__type=(TEXT, text(b"control_vector"))),
        "adapter-alpha-integer": adapter(pair(), adapter__lora__alpha=(U32, bytes(4))),
        "adapter-invoked": adapter(pair(), adapter__alora__invocation_tokens=(ARRAY, array(U32, [bytes(4)]))),
        "adapter-half": adapter(pair()[:1]),
        "adapter-other-half": adapter([tensor(b"a.lora_b", [4, 8])]),
        "adapter-ranks-differ": adapter(pair(ranks=(4, 2))),
        "adapter-of-tokens": adapter(pair(b"token_embd.weight")),
        "adapter-of-experts": adapter(pair(b"blk.0.ffn_up_exps.weight")),
        "adapter-deep": adapter([tensor(b"a.lora_a", [2, 2, 2])]),
        "adapter-of-integers": adapter(pair(kind=24)),
        "adapter-of-anything": adapter([tensor(b"blk.0.attn_q.weight", [8, 4])]),
    }


def config():
    echo = '[plugins.echo]\nlibrary = "libplugin_echo.so"\n'
    cases = {
        "empty": "",
        "comment": "# nothing\n",
        "plugin": echo + 'placement = "in-process"\nmay_call = ["completion:*"]\n',
        "namespace": echo + 'namespace = "echo_child"\nplacement = "child"\nrequire = "L1"\n',
        "limits": echo + "[plugins.echo.limits]\nholding = 16\nmemory_mb = 64\nfiles = 64\nfile_mb = 0\n",
        "restart": echo + '[plugins.echo.restart]\nbackoff_min = "10ms"\nbackoff_max = "1s"\nfailures_max = 3\n',
        "event": '[events."echo:say"]\ntimeout = "1s"\npermission = "echo.use"\n',
        "daemon": '[daemon]\nlog_level = "debug"\nlog_bytes_max = 65536\nshutdown_grace = "5s"\n',
        "free-config": echo + '[plugins.echo.config]\nanything = [1, "two", { three = 3 }]\n',
        "not-toml": "[plugins",
        "surrogate": 'a = "\\ud800"\n',
        "key-twice": "[daemon]\nthreads = 1\nthreads = 2\n",
        "unknown-section": "[deamon]\n",
        "unknown-key": '[plugins.echo]\nlibary = "x"\n',
        "wrong-type": "[plugins.echo]\nlibrary = 5\n",
        "section-is-value": "plugins = 5\n",
        "placement-unknown": echo + 'placement = "moon"\n',
        "level-in-process": echo + 'placement = "in-process"\nrequire = "L1"\n',
        "level-unknown": echo + 'require = "L9"\n',
        "namespace-reserved": echo + 'namespace = "system"\n',
        "two-owners": echo + '[plugins.other]\nlibrary = "libplugin_echo.so"\n',
        "event-not-a-name": '[events."echo"]\ntimeout = "1s"\n',
        "delivery-durable": '[events."echo:say"]\ndelivery = "durable"\n',
        "pattern-bad": echo + 'may_call = ["a:b*"]\n',
        "path-upwards": '[plugins.echo]\nlibrary = "../../etc/passwd"\n',
        "name-upwards": '[plugins."../x"]\nlibrary = "x"\n',
        "backoff-crossed": echo + '[plugins.echo.restart]\nbackoff_min = "10s"\nbackoff_max = "1s"\n',
        "duration-bare": "[daemon]\nshutdown_grace = 5\n",
        "duration-overflow": '[daemon]\nshutdown_grace = "99999999999999999999s"\n',
        "negative": echo + "[plugins.echo.limits]\nholding = -1\n",
        "huge": echo + "[plugins.echo.limits]\nholding = 99999999999999999999\n",
        "uid-twice": "[daemon]\nallow_uids = [1000, 1000, -1]\n",
        "date": "[daemon]\nlog_level = 1979-05-27T07:32:00Z\n",
        "nan": "[daemon]\nthreads = nan\n",
        "deep": "a = " + "[" * 2000 + "]" * 2000 + "\n",
        "dotted": ".".join("a" * 500) + " = 1\n",
        "control": "a = \"\x01\"\n",
        "byte-order-mark": "\ufeff[daemon]\n",
        "carriage-return": "[daemon]\r\nlog_level = \"info\"\r\n",
        "secret": echo + '[plugins.echo.config]\napi_key = "never shown"\n',
    }
    for name, data in cases.items():
        write("config", name, data)
    write("config", "not-utf8", b'a = "\xff"\n')


PLUGINS = """\
# The files that KSI may load where signatures are required. Signed beside it, in .minisig;
# do not edit: `ksi model sign` and `ksi plugin sign` write it.

version = 1
kind = "plugins"

[files."libplugin_echo.so"]
name = "echo"
size = 1630664
sha256 = "71959558bd259df30753dc6afcc970de14c80a075935dd36e9a849daa1ff499a"
signed = "2026-11-26T07:12:09.000Z"

[files."libplugin_state.so"]
name = "state"
size = 3854928
sha256 = "519c9605e2ac9ca763704fc7fbb91435a730897c1e315dcc5525eefd59baebb7"
signed = "2026-11-26T07:12:09.000Z"
"""
PLUGINS_SIGNATURE = """\
untrusted comment: signature from rsign secret key
RUQJBQg1qofarqx9o1obgvW9wCDZR4hryuf9JecRKwJWD9qBR40LJjzutDgtVQY/UfB9NJ9UaIHMK8Xz6yB6NGY4kx3vy9hjXgk=
trusted comment: plugins.lock of KSI, 2026-11-26T07:12:09.000Z
PtM4iT1IhtB8i3zCwQKgg8yellQZ+W9o4VhhgvPDXunvokcaiFuPSWx42BFkizEBpAOYoG/Pb7Mq2NNBWzYYDQ==
"""
PLUGINS_KEY = """\
untrusted comment: minisign public key: AEDA87AA35080509
RWQJBQg1qofarqxgVDgsd79J4Re8+8h5FgNYv6cJYYPajZkFT4EECHQf
"""
MODELS = """\
# The files that KSI may load where signatures are required. Signed beside it, in .minisig;
# do not edit: `ksi model sign` and `ksi plugin sign` write it.

version = 1
kind = "models"

[files."x.gguf"]
name = "x"
size = 2998816
sha256 = "d1126049f5719c928a5d9bb9a6c31461e7b03de427dee2c90cd4b10d85001fa9"
signed = "2026-11-26T07:12:08.987Z"
"""
MODELS_SIGNATURE = """\
untrusted comment: signature from rsign secret key
RURBRK8+fAQK1sFazyeJg1Y8HA76cU5/wIN3aLp2s16JQ13KPw7xZeVENH+SGH1qEEqYZr8Eam26Ng6Xv3CXVbjHQtn18WYGsAM=
trusted comment: models.lock of KSI, 2026-11-26T07:12:08.987Z
fbF7B+mgLtKfPmIie6UaNrqUYenMoofvFHWAa0eL/FBgWW+gSUqK9IXrZPVYHqD2UA2kCD6LcOTnxLVb7azgBQ==
"""
MODELS_KEY = """\
untrusted comment: minisign public key: D60A047C3EAF4441
RWRBRK8+fAQK1hTrSFu6AKDr/oPew3538X1xtKI1Hpw5OptloBhtulF8
"""


def lock():
    def parts(*three):
        return "\0".join(three)

    good = (PLUGINS, PLUGINS_SIGNATURE, PLUGINS_KEY)
    line = PLUGINS_KEY.splitlines()[1]
    signature = PLUGINS_SIGNATURE.splitlines()
    cases = {
        "signed-plugins": good,
        "signed-models": (MODELS, MODELS_SIGNATURE, MODELS_KEY.splitlines()[1]),
        "changed-digest": (PLUGINS.replace("71959558", "81959558"), *good[1:]),
        "changed-comment": (PLUGINS.replace("do not", "do"), *good[1:]),
        "other-key": (PLUGINS, PLUGINS_SIGNATURE, MODELS_KEY),
        "other-signature": (PLUGINS, MODELS_SIGNATURE, MODELS_KEY),
        "empty": ("", "", ""),
        "version-2": (PLUGINS.replace("version = 1", "version = 2"), *good[1:]),
        "kind-unknown": (PLUGINS.replace('"plugins"', '"agents"'), *good[1:]),
        "key-unknown": (PLUGINS + "more = 1\n", *good[1:]),
        "file-upwards": (PLUGINS.replace("libplugin_echo.so", "../echo.so"), *good[1:]),
        "file-empty": (PLUGINS.replace("libplugin_echo.so", ""), *good[1:]),
        "digest-upper": (PLUGINS.replace("71959558bd", "71959558BD"), *good[1:]),
        "digest-short": (PLUGINS.replace("71959558", ""), *good[1:]),
        "size-negative": (PLUGINS.replace("size = 1", "size = -1"), *good[1:]),
        "size-huge": (PLUGINS.replace("size = 1", "size = 99999999999999999999"), *good[1:]),
        "file-twice": (PLUGINS + PLUGINS[PLUGINS.index("[files") :], *good[1:]),
        "not-toml": ("[files", *good[1:]),
        "deep": ("a = " + "[" * 2000 + "]" * 2000, *good[1:]),
        "signature-cut": (PLUGINS, "\n".join(signature[:3]), PLUGINS_KEY),
        "signature-short": (PLUGINS, PLUGINS_SIGNATURE.replace("RUQ", "RU"), PLUGINS_KEY),
        "signature-algorithm": (PLUGINS, PLUGINS_SIGNATURE.replace("RUQ", "RUR"), PLUGINS_KEY),
        "signature-comment": (PLUGINS, PLUGINS_SIGNATURE.replace("trusted comment: p", "trusted comment: q"), PLUGINS_KEY),
        "signature-no-comment": (PLUGINS, "\n".join([signature[0], signature[1], "x", signature[3]]), PLUGINS_KEY),
        "signature-wide": (PLUGINS, "\u2603\n" * 4, PLUGINS_KEY),
        "key-short": (PLUGINS, PLUGINS_SIGNATURE, line[:-4]),
        "key-algorithm": (PLUGINS, PLUGINS_SIGNATURE, "AA" + line[2:]),
        "key-three-lines": (PLUGINS, PLUGINS_SIGNATURE, PLUGINS_KEY + "\nmore"),
        "key-of-no-point": (PLUGINS, PLUGINS_SIGNATURE, line[:14] + "/" * 42),
    }
    for name, case in cases.items():
        write("lock", name, parts(*case))
    write("lock", "not-utf8", b"\xff\0\xff")


def audit():
    line = MODELS_KEY.splitlines()[1]

    def chained(records, first=1):
        before = hashlib.sha256(b"before").digest()
        begin = {"version": 1, "first": first, "before": before.hex(), "public_key": line, "at_ms": 1}
        lines = ['{"begin":%s}' % compact(begin)]
        for seq, record in enumerate(records, first):
            before = hashlib.sha256(before + struct.pack("<Q", seq) + record.encode()).digest()
            lines.append('{"entry":{"seq":%d,"chain":"%s","record":%s}}' % (seq, before.hex(), record))
        end = {"last": first + len(records) - 1, "records": len(records)}
        return lines + ['{"end":%s}' % compact(end)]

    decision = (
        '{"kind":"decision","at_ms":%d,"principal":"me","origin":"session:1","event":"state:set",'
        '"permission":"state.write","allowed":true,"sha256":"' + "ab" * 32 + '","size":5}'
    )
    lost = '{"kind":"lost","at_ms":7,"allowed":3,"denied":1}'
    good = chained([decision % 1, lost, decision % 2])
    head = '{"head":{"seq":3,"chain":"%s","at_ms":1,"signature":%s}}' % ("00" * 32, compact(MODELS_SIGNATURE))
    cases = {
        "whole": good,
        "empty-trail": chained([]),
        "first-zero": [text.replace('"last":-1', '"last":0') for text in chained([], first=0)],
        "later": chained([lost] * 20, first=981),
        "spaces-in-a-record": chained(['{ "kind" : "lost" , "n" : 1 }']),
        "any-record": chained(["null", '"text"', "[1, 2, [3]]", "1e400"]),
        "far": chained([lost], first=2**64 - 2),
        "too-far": chained([lost, lost], first=2**64 - 2),
        "head-forged": good[:-1] + [head, good[-1]],
        "head-first": [good[0], head] + good[1:],
        "changed": [text.replace('"me"', '"you"') for text in good],
        "moved": [good[0], good[2], good[1], *good[3:]],
        "left-out": [good[0], *good[2:]],
        "cut": good[:-1],
        "cut-in-a-line": good[:2] + [good[2][:40]],
        "no-begin": good[1:],
        "begins-twice": [good[0], *good],
        "goes-on": good + [good[1]],
        "end-miscounts": good[:-1] + [good[-1].replace('"records":3', '"records":4')],
        "version-2": [good[0].replace('"version":1', '"version":2'), *good[1:]],
        "key-none": [good[0].replace(line, "RW"), *good[1:]],
        "field-unknown": [good[0].replace('{"version"', '{"more":1,"version"'), *good[1:]],
        "line-unknown": [good[0], '{"other":{}}'],
        "seq-negative": [text.replace('"seq":1', '"seq":-1') for text in good],
        "chain-short": [text.replace('"chain":"', '"chain":"0') for text in good],
        "deep": [good[0], '{"entry":{"seq":1,"chain":"%s","record":%s}}' % ("00" * 32, "[" * 500 + "]" * 500)],
        "nothing": [],
        "not-json": ["begin"],
    }
    for name, lines in cases.items():
        write("audit", name, "\n".join(lines))
    write("audit", "not-utf8", b'{"begin":"\xff"}')


def token():
    secret = "0123456789abcdef" * 4
    good = f"ksi_0a1b2c3d_{secret}"
    cases = {
        "good": good,
        "spaces": f"  {good}\n",
        "wide-spaces": f"\u2003{good}\u00a0",
        "empty": "",
        "blank": " \t\r\n",
        "star": "*",
        "prefix": "ksi_",
        "no-prefix": good[4:],
        "prefix-twice": f"ksi_{good}",
        "no-secret": "ksi_0a1b2c3d",
        "id-empty": f"ksi__{secret}",
        "id-short": f"ksi_0a1b2c3_{secret}",
        "id-long": f"ksi_0a1b2c3d4_{secret}",
        "id-wide": f"ksi_0a1b2c\u00e9_{secret}",
        "short": good[:-1],
        "long": good + "0",
        "bar-twice": f"ksi_0a1b2c3d__{secret[1:]}",
        "bar-at-end": good[:-1] + "_",
        "upper": good.upper(),
        "upper-secret": good[:13] + secret.upper(),
        "not-hex": good[:-1] + "g",
        "wide": f"ksi_0a1b2c3d_\u00e9{secret[2:]}",
        "nul": good.replace("8", "\0", 1),
        "newline": f"{good}\n{good}",
        "space-inside": good.replace("_0123", "_0 23"),
        "huge": good + "0" * 4000,
    }
    for name, text in cases.items():
        write("token", name, text)
    write("token", "not-utf8", good[:-2].encode() + b"\xff\xfe")


for build in (frame, json, pattern, gguf_header, config, lock, audit, token):
    build()
