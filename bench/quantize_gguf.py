#!/usr/bin/env python3
"""Quantise a GGUF file to Q8_0 with llama.cpp: quantize_gguf.py IN.gguf OUT.gguf"""
import os
import sys

import llama_cpp as llama

source, target = sys.argv[1:]
params = llama.llama_model_quantize_default_params()
params.ftype = llama.LLAMA_FTYPE_MOSTLY_Q8_0
part = target + '.part'
if llama.llama_model_quantize(source.encode(), part.encode(), params) != 0:
    sys.exit('quantize_gguf: llama.cpp failed')
os.rename(part, target)
