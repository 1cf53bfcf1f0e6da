#!/usr/bin/env python3
"""What transformers generates with the tiny Llama of peft/base: penalties, n-grams, beams.

Usage: make_generation_reference.py     (writes tests/reference/generation/expected.json)
Needs torch and transformers; see peft/README.md for the versions.

The last head is multiplied by HEAD_SCALE, so that tokens differ in likelihood by more than rounding; tests do the same.
"""
import json
import os

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.generation import (LogitsProcessorList, MinNewTokensLengthLogitsProcessor, NoRepeatNGramLogitsProcessor,
                                     RepetitionPenaltyLogitsProcessor)

HERE = os.path.dirname(os.path.abspath(__file__))
HEAD_SCALE = 12.0
NEW_TOKENS = 14
PROMPTS = [[1, 17, 42, 9], [1, 5, 5, 88, 23, 64, 101, 7, 30], [1, 99], [1, 30, 31, 32, 33, 34, 35], [1, 64, 12, 100, 3]]


def generate(model, prompt, stop_ids, **options):
    ids = torch.tensor([prompt])
    with torch.no_grad():
        return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=stop_ids or None, pad_token_id=0,
                              return_dict_in_generate=True, output_scores=True, output_logits=True, **options)


def new_tokens(sequence, prompt, stop_ids):
    """Without the prompt and the padding behind an end token."""
    ids = sequence[len(prompt):].tolist()
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return ids[:ends[0] + 1] if ends else ids


def greedy_case(model, name, stop_ids, **options):
    rows = []
    for prompt in PROMPTS:
        result = generate(model, prompt, stop_ids, max_new_tokens=NEW_TOKENS, num_beams=1, **options)
        ids = new_tokens(result.sequences[0], prompt, stop_ids)
        logprobs = [float(torch.log_softmax(result.logits[i][0].float(), -1)[token]) for i, token in enumerate(ids)]
        scores = [float(result.scores[i][0][token]) for i, token in enumerate(ids)]
        rows.append({"token_ids": ids, "logprobs": logprobs, "scores": scores})
    return {"name": name, "options": options, "stop_ids": stop_ids, "rows": rows}


def beam_case(model, name, stop_ids, **options):
    rows = []
    for prompt in PROMPTS:
        result = generate(model, prompt, stop_ids, max_new_tokens=NEW_TOKENS, num_return_sequences=options["num_beams"], **options)
        sequences = [new_tokens(sequence, prompt, stop_ids) for sequence in result.sequences]
        rows.append({"sequences": sequences, "sequence_scores": result.sequences_scores.tolist()})
    return {"name": name, "options": options, "stop_ids": stop_ids, "rows": rows}


def processed(name, ids, num_prompt, scores, processor):
    return {"name": name, "ids": ids, "num_prompt": num_prompt, "scores": scores.tolist(),
            "processed": processor(torch.tensor([ids]), scores.clone().unsqueeze(0))[0].tolist()}


def processor_cases():
    scores = torch.tensor([1.5, -2.25, 0.0, 3.125, -0.5, 0.75, 2.0, -1.0])
    ids = [3, 1, 4, 3, 1, 3, 1]
    penalty, ngram = RepetitionPenaltyLogitsProcessor(1.3), NoRepeatNGramLogitsProcessor(3)
    least = MinNewTokensLengthLogitsProcessor(4, 4, torch.tensor([6, 0]))
    return [processed("penalty", ids, 4, scores, penalty),
            processed("reward", ids, 4, scores, RepetitionPenaltyLogitsProcessor(0.7)),
            processed("ngram_3", ids, 4, scores, ngram),
            processed("ngram_1", ids, 4, scores, NoRepeatNGramLogitsProcessor(1)),
            processed("ngram_longer_than_ids", ids, 4, scores, NoRepeatNGramLogitsProcessor(8)),
            processed("min_new_tokens", ids, 4, scores, least),
            processed("all", ids, 4, scores, LogitsProcessorList([penalty, ngram, least]))]


def main():
    model = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "peft", "base"), dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig()
    with torch.no_grad():
        model.lm_head.weight.mul_(HEAD_SCALE)
    # End tokens that some beams meet in their middle.
    free = beam_case(model, "free", [], num_beams=3)["rows"]
    ends = sorted({free[0]["sequences"][0][6], free[1]["sequences"][0][6], free[4]["sequences"][0][9]})
    cases = [greedy_case(model, "greedy", []),
             greedy_case(model, "greedy_ends", ends),
             greedy_case(model, "penalty", ends, repetition_penalty=1.3),
             greedy_case(model, "reward", [], repetition_penalty=0.8),
             greedy_case(model, "ngram", [], no_repeat_ngram_size=2),
             greedy_case(model, "least", ends, min_new_tokens=6),
             greedy_case(model, "all", ends, repetition_penalty=1.15, no_repeat_ngram_size=3, min_new_tokens=4)]
    beams = []
    for num_beams in (2, 3, 5):
        for early_stopping in (False, True, "never"):
            for length_penalty in (0.0, 1.0, 2.0, -1.0):
                name = f"{num_beams}_beams_{early_stopping}_{length_penalty}"
                beams.append(beam_case(model, name, ends, num_beams=num_beams, early_stopping=early_stopping,
                                       length_penalty=length_penalty))
    beams.append(beam_case(model, "no_ends", [], num_beams=4, early_stopping=False, length_penalty=1.0))
    beams.append(beam_case(model, "one_end", ends[:1], num_beams=4, early_stopping=False, length_penalty=1.0))
    beams.append(beam_case(model, "rules", ends, num_beams=3, early_stopping=False, length_penalty=1.0, repetition_penalty=1.2,
                           no_repeat_ngram_size=2, min_new_tokens=5))
    result = {"transformers": transformers.__version__, "torch": torch.__version__, "head_scale": HEAD_SCALE,
              "new_tokens": NEW_TOKENS, "prompts": PROMPTS, "greedy": cases, "beams": beams, "processors": processor_cases()}
    text = json.dumps(result).replace("-Infinity", "null").replace('{"name"', '\n{"name"')
    with open(os.path.join(HERE, "generation", "expected.json"), "w") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
