#!/usr/bin/env python3
"""GGUF LoRA fixtures (rules of llama.cpp's convert_lora_to_gguf.py and src/llama-adapter.cpp) from the PEFT fixtures beside this file; needs
the packages gguf, numpy and safetensors. Files made by `gguf` 0.19.0, read back by it (.json)."""
import json, math, os, re, sys
import numpy as np, gguf
from safetensors.numpy import load_file
R = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
MAP = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
       "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
def permute(w, heads):   # HF half-split rope rows -> interleaved rows of llama.cpp
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
def pat(p, n, d):
    for k, v in p.items():
        if re.match(rf"(.*\.)?({k})$", n): return v
    return d
def make(case, base):
    c = json.load(open(f"{R}/{case}/final/adapter_config.json")); bc = json.load(open(f"{R}/{base}/config.json"))
    t = load_file(f"{R}/{case}/final/adapter_model.safetensors"); d = f"{R}/gguf_lora"; os.makedirs(d, exist_ok=True)
    f = f"{d}/{case}.gguf"; w = gguf.GGUFWriter(f, "llama"); w.add_type("adapter"); w.add_string("adapter.type", "lora")
    w.add_file_type(0); w.add_float32("adapter.lora.alpha", float(c["lora_alpha"])); exp, sc = {}, {}
    for k in sorted(t):
        m = re.match(r"base_model\.model\.model\.layers\.(\d+)\.(.*)\.lora_([AB])\.weight", k)
        n = f"model.layers.{m[1]}.{m[2]}"; x = t[k]
        r = pat(c["rank_pattern"], n, c["r"]); al = pat(c["alpha_pattern"], n, c["lora_alpha"]); s = al / (math.sqrt(r) if c["use_rslora"] else r)
        g = f"blk.{m[1]}.{MAP[m[2]]}.weight.lora_{m[3].lower()}"
        if m[3] == "B":
            if m[2].endswith("q_proj"): x = permute(x, bc["num_attention_heads"])
            if m[2].endswith("k_proj"): x = permute(x, bc["num_key_value_heads"])
            x = x * np.float32(s * r / c["lora_alpha"])      # so that the reader's alpha / rank gives s; 1.0 in the plain case
        w.add_tensor(g, np.ascontiguousarray(x)); exp[g] = x; sc[g[:-7]] = s
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    rd = gguf.GGUFReader(f)
    for tt in rd.tensors:
        assert np.array_equal(np.array(tt.data).reshape(exp[tt.name].shape), exp[tt.name]), tt.name
    for g in {k[:-7] for k in exp}:      # alpha/rank * B A == permuted PEFT delta
        a, b = exp[g + ".lora_a"], exp[g + ".lora_b"]; i, nm = re.match(r"blk\.(\d+)\.(\w+)\.weight", g).groups()
        hf = {v: k for k, v in MAP.items()}[nm]; p = f"base_model.model.model.layers.{i}.{hf}.lora_"
        dl = sc[g] * t[p + "B.weight"] @ t[p + "A.weight"]
        if nm in ("attn_q", "attn_k"): dl = permute(dl, bc["num_attention_heads" if nm == "attn_q" else "num_key_value_heads"])
        assert np.allclose(c["lora_alpha"] / b.shape[1] * b @ a, dl, atol=1e-6), g
    info = dict(gguf=getattr(gguf, "__version__", "0.19.0"), keys={k: (str(v.contents()) if hasattr(v, "contents") else "") for k, v in rd.fields.items() if "." in k and not k.startswith("GGUF")},
                tensors={tt.name: [int(x) for x in tt.shape] for tt in rd.tensors}, data_offset=int(rd.data_offset), alignment=int(rd.alignment))
    json.dump(info, open(f"{d}/{case}.json", "w"), indent=1, sort_keys=True); print(case, os.path.getsize(f), info["keys"], list(info["tensors"].items())[:2], "data at", info["data_offset"])
for case, base in (("lora", "base"), ("lora_gqa", "base_gqa"), ("rslora", "base"), ("lora_all_linear_patterns", "base")): make(case, base)
