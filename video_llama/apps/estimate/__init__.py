"""What a configuration costs before anything is built: parameters, arithmetic, memory, time.

Everything here follows from the YAML and the model in shapes: no weight file is opened.
"""
