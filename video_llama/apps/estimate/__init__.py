"""What a configuration costs before anything is built: parameters, arithmetic, memory, time.

Everything here follows from the YAML and the sizes of the LLM. No weight file is opened, and torch
is imported only to measure the processor of the machine it runs on (`--gpu cpu`).
"""
